"""Two contractions around bounds of any sign: every set of singular-value bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import contraction, invert_contraction, working_dtype
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.balls.bounds import on_sphere
from lowrank_opt.parameterizations.base import Parameterization, lora_start_
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import SchattenBall, SingularValueBox


class Contractions(Parameterization):
    r""":math:`W = K(B)\, \mathrm{diag}(s)\, K(A)^T` with :math:`K(B) = 2 B (I + B^T B)^{-1}`.

    Sets, all complete:

    * ``radius, p``: the Schatten-p ball, p in [1, inf];
    * ``bounds``: ``sigma_i(W) <= |bounds_i|``, one by one, bounds of either sign.

    *Into*: K(B) is a contraction for every B, and
    :math:`\sigma_i(C_1 S C_2^T) \le \|C_1\|\, |s|_{[i]}\, \|C_2\|`. *Onto*: K reaches every
    contraction; the left one takes the singular values :math:`\sigma_i / s_i`, the right one is
    orthonormal. For p < inf the values s are learned, :math:`s = \delta z / \|z\|_p`.

    Two r x r solves, of positive definite matrices. The map is computed in float64 and rounded
    once to the parameters' dtype: for every finite parameter the bounds hold to a few units of
    rounding of that dtype.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float, optional
        Bound on the Schatten-p norm. Positive; 1 if neither `radius` nor `bounds` is given.
    p : float, optional
        Schatten order in [1, inf]; inf if neither `p` nor `bounds` is given.
    bounds : iterable of float, optional
        `rank` finite bounds of either sign, not all zero, instead of a norm.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If a bound or norm order is outside its domain.
    OptionError
        If `bounds` comes with a radius, or with another number of values.

    References
    ----------
    Horn and Johnson, *Topics in Matrix Analysis*, theorem 3.3.16, for the inequality.

    Examples
    --------
    >>> layer = Contractions((6, 4), rank=2, bounds=[1.0, -0.25])
    >>> _ = layer.assign(10 * torch.eye(6, 4), project=True)
    >>> layer().detach().singular_values()
    tensor([1.0000, 0.2500])
    """

    complete: bool = True
    alike_rows: ClassVar[str] = "left"
    alike_cols: ClassVar[str] = "right"

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        radius: float | None = None,
        p: float | None = None,
        bounds: Iterable[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.bounds: tuple[float, ...] | None = (
            None if bounds is None else _signed_bounds(bounds, self.rank, radius, p)
        )
        self._set: SchattenBall | SingularValueBox = (
            SchattenBall(
                math.inf if p is None else float(p),
                check_radius(1.0 if radius is None else radius),
                self.rank,
            )
            if self.bounds is None
            else SingularValueBox(abs(s) for s in self.bounds)
        )
        self.radius: float | None = getattr(self._set, "radius", None)
        self.p: float | None = getattr(self._set, "p", None)
        self.left: nn.Parameter = nn.Parameter(
            torch.empty(m, self.rank, dtype=dtype, device=device)
        )
        self.right: nn.Parameter = nn.Parameter(
            torch.empty(n, self.rank, dtype=dtype, device=device)
        )
        learned = isinstance(self._set, SchattenBall) and not math.isinf(self._set.p)
        self.spread: nn.Parameter | None = (
            nn.Parameter(self.left.detach().new_empty(self.rank)) if learned else None
        )
        self.check_held()
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        def boxed(
            shape: tuple[int, int], rank: int, dtype: torch.dtype = torch.float64
        ) -> Contractions:
            bounds = [(rank - i) * (-1) ** i for i in range(rank)]
            return cls(shape, rank, bounds=bounds, dtype=dtype)

        said = "two r x r inverses", "Horn and Johnson, theorem 3.3.16"
        yield Example("Contractions(radius, p)", partial(cls, radius=1.0, p=3.0), *said)
        yield Example("Contractions(bounds)", boxed, *said)
        yield Example("Contractions(radius)", partial(cls, radius=1.0), listed=False)

    @property
    def feasible_set(self) -> SchattenBall | SingularValueBox:
        return self._set

    def value_limits(self) -> Tensor:
        """Return signed s, shape (rank,): the i-th largest magnitude bounds the i-th value."""
        least = self.left.new_zeros(self.rank, dtype=working_dtype(self.left))
        if self.spread is None:
            return self._bounds_for(least)
        assert isinstance(self._set, SchattenBall), "a spread belongs to a norm"
        return on_sphere(self.spread, self._set)

    def factors(self) -> LowRankOperator:
        triple = contraction(self.left), self.value_limits(), contraction(self.right)
        return LowRankOperator(*(x.to(self.left.dtype) for x in triple))

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return :math:`B = U \tan(\arcsin(\sigma / s) / 2)`, :math:`A = V`.

        For a norm ball the slack is spread over all s_i, so that s_i > sigma_i inside the ball.
        """
        U, sigma, V = self.svd_of(target)
        s = self._bounds_for(sigma)
        ratio = torch.where(s != 0, sigma / torch.where(s != 0, s, 1.0), 0.0)
        values = {"left": U * invert_contraction(ratio), "right": V}
        return values if self.spread is None else values | {"spread": s / s.amax()}

    def _bounds_for(self, sigma: Tensor) -> Tensor:
        if self.bounds is not None:
            return sigma.new_tensor(self.bounds)
        return self._set.dominating(sigma)

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set left = 0 and right to a random orthonormal frame V, for which K(V) = V."""
        lora_start_(self.left, self.right, generator)
        if self.spread is not None:
            self.spread.fill_(1.0)
        return self


def _signed_bounds(
    bounds: Iterable[float] | Tensor, rank: int, radius: float | None, p: float | None
) -> tuple[float, ...]:
    """Return the bounds in decreasing order of size, with their signs."""
    given = bounds.tolist() if isinstance(bounds, Tensor) else bounds
    values = tuple(sorted((float(b) for b in given), key=abs, reverse=True))
    if radius is not None or p is not None or len(values) != rank:
        raise OptionError(
            f"bounds replaces radius and p and needs rank={rank} values; "
            f"got {len(values)} values, radius={radius!r} and p={p!r}"
        )
    return values
