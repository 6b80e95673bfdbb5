"""The nuclear-norm ball as weighted unit rank-ones, weights on a simplex with slack."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.linalg import (
    negligible,
    normalize_columns,
    scale_to_unit_peak,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.balls.pairs import cancelling, paired, units_but_last
from lowrank_opt.parameterizations.base import Parameterization, random_frame
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import SchattenBall


class SimplexRankOnes(Parameterization):
    r""":math:`W = \delta \sum_i w_i\, u_i v_i^T`, unit u_i, v_i, and :math:`w = z^2 / \|z\|^2`.

    Set: the nuclear-norm ball of radius :math:`\delta` among matrices of rank at most r, closed
    and complete for every r >= 1; z has r + 1 entries, the last one is slack. *Into*: the triangle
    inequality. *Onto*: the singular value decomposition, :math:`w_i = \sigma_i / \delta`.

    The last column of u is divided by max(1, norm), when r is odd, instead of its norm: an
    unpaired term can then start at zero. Terms are written as sums and differences of pairs, so
    that pairs that cancel give W = 0 exactly. A weight that is exactly zero gets no gradient.

    No solve. Computed in float64 and rounded once to the parameters' dtype: the bound holds to a
    few units of rounding of that dtype for every finite parameter; columns below 1e-292 in
    float64 (1e-31 in float32) count as zero.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    radius : float
        Bound on the nuclear norm. Positive.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    RadiusError
        If the radius is not positive and finite.

    References
    ----------
    Jaggi and Sulovsky (ICML 2010), section 3: the ball is the convex hull of unit rank-ones.

    Examples
    --------
    >>> layer = SimplexRankOnes((5, 4), rank=3, radius=2.0)
    >>> layer().schatten_norm(1).item()
    0.0
    >>> round(layer.assign(torch.eye(5, 4), project=True)().schatten_norm(1).item(), 5)
    2.0
    """

    complete: bool = True
    alike_rows: ClassVar[str] = "left"
    alike_cols: ClassVar[str] = "right"

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        radius: float,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.radius: float = check_radius(radius)
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left: nn.Parameter = nn.Parameter(empty.new_empty(m, self.rank))
        self.right: nn.Parameter = nn.Parameter(empty.new_empty(n, self.rank))
        self.weights: nn.Parameter = nn.Parameter(empty.new_empty(self.rank + 1))
        self.check_held()
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        make = partial(cls, radius=1.0)
        yield Example("SimplexRankOnes(radius)", make, reference="ICML 2010")

    @property
    def feasible_set(self) -> SchattenBall:
        return SchattenBall(1.0, self.radius, self.rank)

    def factors(self) -> LowRankOperator:
        dtype = working_dtype(self.left)
        w = _simplex(self.weights.to(dtype), self.weights.dtype)
        # An unpaired last column of u is no direction: it may be zero, and moves from there.
        u = _without_negligible(self.left, self.rank // 2 * 2)
        v = _without_negligible(self.right, self.rank)
        radii = w.new_full((self.rank,), self.radius)
        op = paired(units_but_last(u) * w, normalize_columns(v.to(dtype)), radii)
        return op.to(dtype=self.left.dtype)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return the singular vectors and :math:`z_i = \sqrt{\sigma_i / \delta}`.

        For W = 0, where these weights would get no gradient, cancelling pairs.
        """
        U, sigma, V = self.svd_of(target)
        if not bool(sigma.any()):
            return self._cancelled(U, V)
        w = sigma / self.radius
        slack = (1 - w.sum()).clamp_min(0.0)
        return {"left": U, "right": V, "weights": torch.cat((w, slack[None])).sqrt()}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the terms to cancelling pairs of equal weight, an unpaired last one to zero."""
        (m, r), n = self.left.shape, self.shape[1]
        b = random_frame(m, r, like=self.left, generator=generator)
        a = random_frame(n, r, like=self.right, generator=generator)
        for name, value in self._cancelled(b, a).items():
            self.get_parameter(name).copy_(value)
        return self

    def _cancelled(self, b: Tensor, a: Tensor) -> dict[str, Tensor]:
        left, right = cancelling(b, a)
        return {"left": left, "right": right, "weights": b.new_ones(self.rank + 1)}


def _simplex(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the first r of the weights z^2 / |z|^2; zero if z is negligible in its own dtype."""
    z = scale_to_unit_peak(z.to(dtype))[0].to(z.dtype)
    total = z.square().sum()
    return torch.where(total > 0, z[:-1].square() / torch.where(total > 0, total, 1.0), 0.0)


def _without_negligible(x: Tensor, count: int) -> Tensor:
    """Set the first `count` columns to zero where their own dtype cannot hold the gradient."""
    keep = x.detach().abs().amax(dim=0) >= negligible(x.dtype)
    return torch.cat((torch.where(keep, x, 0.0)[:, :count], x[:, count:]), dim=1)
