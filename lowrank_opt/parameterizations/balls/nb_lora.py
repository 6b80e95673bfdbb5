"""Norm-bounded LoRA: individual singular values bounded through one Cayley transform."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import (
    inverse_cayley,
    symmetric_inverse_cayley,
    tall_cayley,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.balls.bounds import on_sphere
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.example import INVERSE, Example
from lowrank_opt.sets import KyFanBall, NormBall, SchattenBall, SingularValueBox


class NBLoRA(Parameterization):
    r""":math:`W = 2\, G_U\, \mathrm{diag}(s)\, G_V^T` with :math:`G_U^T G_U + G_V^T G_V = I`.

    The frame ``G = [G_V; G_U]`` is the tall Cayley transform of free parameters, and s >= 0 lies
    on the sphere of the chosen norm. Sets, all complete (not only dense):

    * ``radius, p``: the Schatten-p ball, p in [1, inf];
    * ``radius, ky_fan=k``: the ball of the sum of the k largest singular values;
    * ``bounds``: ``sigma_i(W) <= bounds_i`` for decreasing bounds, one by one.

    *Into*: :math:`2 \sigma_i(P Q^T) \le \lambda_i(P^T P + Q^T Q)` (Bhatia and Kittaneh) with
    :math:`P = G_U S^{1/2}`, :math:`Q = G_V S^{1/2}`; it needs s >= 0. *Onto*: an SVD-aligned frame
    whose columns may change sign, so that the Cayley transform misses nothing.

    For p < inf the values s are learned, :math:`s = \delta |z| / \|z\|`; with fixed equal s one
    would only get a small spectral ball. For nuclear-norm problems `HomogeneousBall` trains
    better: a component whose z reaches 0 exactly gets no gradient any more.

    The map is computed in float64 and rounded once to the parameters' dtype: for every finite
    parameter the bounds hold to a few units of rounding of that dtype.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float, optional
        Bound on the norm. Positive; 1 if neither `radius` nor `bounds` is given.
    p : float, optional
        Schatten order in [1, inf]; inf if none of `p`, `ky_fan` and `bounds` is given.
    ky_fan : int, optional
        Use the Ky Fan norm of this order instead of a Schatten norm.
    bounds : iterable of float, optional
        `rank` bounds on individual singular values instead of a norm.
    skew : bool, optional
        Whether the top r x r block is free. By default only where it is needed: for equal bounds
        (the spectral ball) its absence costs nothing and conditions the map perfectly.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If a bound or norm order is outside its domain.
    OptionError
        If `bounds` comes with a norm or another number of values, or `skew=False` where it is
        needed.

    References
    ----------
    Wang, Dvijotham and Manchester, Norm-Bounded Low-Rank Adaptation (arXiv 2501.19050); Bhatia
    and Kittaneh (SIAM J. Matrix Anal. Appl. 1990) for the inequality.

    Examples
    --------
    >>> layer = NBLoRA((6, 4), rank=2, radius=0.5)
    >>> _ = layer.assign(10 * torch.randn(6, 4), project=True)
    >>> round(layer().schatten_norm(float("inf")).item(), 5)
    0.5
    """

    complete: bool = True
    alike_rows: ClassVar[str] = "left_rows"

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        radius: float | None = None,
        p: float | None = None,
        ky_fan: int | None = None,
        bounds: Iterable[float] | Tensor | None = None,
        skew: bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self._set = _declared_set(self.rank, radius, p, ky_fan, bounds)
        self.radius: float | None = self._set.radius if isinstance(self._set, NormBall) else None
        self.bounds: tuple[float, ...] | None = (
            None if isinstance(self._set, NormBall) else self._set.bounds
        )
        self.p: float | None = self._set.p if isinstance(self._set, SchattenBall) else None
        self.ky_fan = ky_fan
        spectral = isinstance(self._set, SchattenBall) and math.isinf(self._set.p)
        if skew is False and not spectral:
            raise OptionError(
                f"skew=False reaches all members only for the spectral ball; got {self._set}: "
                "leave skew out"
            )
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left_rows: nn.Parameter = nn.Parameter(empty.new_empty(m, self.rank))
        self.right_rows: nn.Parameter = nn.Parameter(empty.new_empty(n - self.rank, self.rank))
        free_top = (not spectral) if skew is None else skew
        self.skew: nn.Parameter | None = (
            nn.Parameter(empty.new_empty(self.rank, self.rank)) if free_top else None
        )
        learned = not spectral and not isinstance(self._set, SingularValueBox)
        self.spread: nn.Parameter | None = (
            nn.Parameter(empty.new_empty(self.rank)) if learned else None
        )
        self.check_held()
        self.zero_(generator=generator)

    def options(self) -> dict[str, object]:
        return {**super().options(), "skew": self.skew is not None}

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def boxed(shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64) -> NBLoRA:
            return cls(shape, rank, bounds=range(rank, 0, -1), dtype=dtype)

        for name, make in (
            ("NBLoRA(radius)", partial(cls, radius=1.0)),
            ("NBLoRA(radius, p)", partial(cls, radius=1.0, p=3.0)),
            ("NBLoRA(ky_fan)", partial(cls, radius=1.0, ky_fan=2)),
            ("NBLoRA(bounds)", boxed),
        ):
            yield Example(name, make, INVERSE, "arXiv 2501.19050")
        yield Example("NBLoRA(radius, skew)", partial(cls, radius=1.0, skew=True), listed=False)

    @property
    def feasible_set(self) -> SchattenBall | KyFanBall | SingularValueBox:
        return self._set

    def frame(self) -> Tensor:
        """Return ``G = [G_V; G_U]``, shape (n + m, rank), in the working dtype."""
        return tall_cayley(self.skew, self.right_rows, self.left_rows)

    def value_limits(self) -> Tensor:
        """Return s, shape (rank,): what each singular value cannot exceed at these parameters."""
        if self.spread is None:
            least = self.left_rows.new_zeros(self.rank, dtype=working_dtype(self.left_rows))
            return self._set.dominating(least)
        assert isinstance(self._set, NormBall), "a spread belongs to a norm"
        return on_sphere(self.spread.abs(), self._set)

    def factors(self) -> LowRankOperator:
        m, n = self.shape
        dtype = self.left_rows.dtype
        right, left = self.frame().to(dtype).split((n, m))
        return LowRankOperator(left, (2 * self.value_limits()).to(dtype), right)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return the parameters of ``[V cos(theta); U sin(theta)]``, sin(2 theta_i) = sigma_i/s_i.

        For a norm ball the slack is spread over all s_i, so that s_i > sigma_i inside the ball.
        """
        U, sigma, V = self.svd_of(target)
        s = self._set.dominating(sigma)
        ratio = (sigma / torch.where(s > 0, s, 1.0)).clamp(0.0, 1.0)
        theta = torch.asin(ratio) / 2
        values = self._invert_frame(torch.cat((V * theta.cos(), U * theta.sin())))
        if self.spread is not None:
            # Largest entry 1: |z| / norm(z) depends on ratios only.
            values["spread"] = s / s.amax()
        return values

    @torch.no_grad()
    def rebase(self) -> Self:
        """Replace the parameters by bounded ones with the same W.

        Long training may drive the parameters to large values, where gradients shrink like their
        inverse square. Reset the optimizer's moments after a rebase.
        """
        for name, value in self._invert_frame(self.frame()).items():
            self.get_parameter(name).copy_(value)
        return self

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the left rows to 0 and the right rows as LoRA's A: uniform in +-1/sqrt(n)."""
        n, r = self.shape[1], self.rank
        device = generator.device if generator is not None else torch.device("cpu")
        uniform = torch.rand(n - r, r, dtype=torch.float64, device=device, generator=generator)
        self.left_rows.zero_()
        self.right_rows.copy_((2 * uniform - 1) / math.sqrt(n))
        if self.skew is not None:
            self.skew.zero_()
        if self.spread is not None:
            self.spread.fill_(1.0)
        return self

    def _invert_frame(self, G: Tensor) -> dict[str, Tensor]:
        n, r = self.shape[1], self.rank
        if self.skew is None:
            rows = symmetric_inverse_cayley(G)
            return {"right_rows": rows[: n - r], "left_rows": rows[n - r :]}
        skew, rows = inverse_cayley(G)
        return {"skew": skew, "right_rows": rows[: n - r], "left_rows": rows[n - r :]}


def _declared_set(
    rank: int,
    radius: float | None,
    p: float | None,
    ky_fan: int | None,
    bounds: Iterable[float] | Tensor | None,
) -> SchattenBall | KyFanBall | SingularValueBox:
    if bounds is not None:
        box = SingularValueBox(bounds)
        if radius is not None or p is not None or ky_fan is not None or box.rank != rank:
            raise OptionError(
                f"bounds replaces radius, p and ky_fan and needs rank={rank} values; "
                f"got {box.rank} values, radius={radius!r}, p={p!r}, ky_fan={ky_fan!r}"
            )
        return box
    radius = check_radius(1.0 if radius is None else radius)
    if ky_fan is not None:
        if p is not None:
            raise OptionError(
                f"ky_fan replaces the Schatten order p; got ky_fan={ky_fan!r} and p={p!r}: "
                "leave one out"
            )
        return KyFanBall(ky_fan, radius, rank)
    return SchattenBall(math.inf if p is None else float(p), radius, rank)
