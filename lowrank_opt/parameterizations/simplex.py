"""The nuclear-norm ball as weighted unit rank-ones, weights on a simplex with slack."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_radius
from lowrank_opt.linalg import (
    lp_norm,
    negligible,
    normalize_columns,
    scale_to_unit_peak,
    working_dtype,
)
from lowrank_opt.operator import LowRankOperator
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
        self.radius = check_radius(radius)
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left = nn.Parameter(empty.new_empty(m, self.rank))
        self.right = nn.Parameter(empty.new_empty(n, self.rank))
        self.weights = nn.Parameter(empty.new_empty(self.rank + 1))
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
        left, right = _paired(_capped_last(u.to(dtype)) * w, normalize_columns(v.to(dtype)))
        scale = left.new_full((self.rank,), self.radius)
        return LowRankOperator(left, scale, right).to(dtype=self.left.dtype)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return the singular vectors and :math:`z_i = \sqrt{\sigma_i / \delta}`.

        For W = 0, where these weights would get no gradient, cancelling pairs.
        """
        U, sigma, V = self._aligned(target)
        if not bool(sigma.any()):
            return _cancelling(U, V)
        w = sigma / self.radius
        slack = (1 - w.sum()).clamp_min(0.0)
        return {"left": U, "right": V, "weights": torch.cat((w, slack[None])).sqrt()}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the terms to cancelling pairs of equal weight, an unpaired last one to zero."""
        (m, r), n = self.left.shape, self.shape[1]
        b = random_frame(m, r, like=self.left, generator=generator)
        a = random_frame(n, r, like=self.right, generator=generator)
        for name, value in _cancelling(b, a).items():
            self.get_parameter(name).copy_(value)
        return self


def _cancelling(b: Tensor, a: Tensor) -> dict[str, Tensor]:
    """Return pairs (b, a), (-b, a) of equal weight; a last column without a partner gets b = 0."""
    h, b, a = b.shape[1] // 2 * 2, b.clone(), a.clone()
    b[:, 1:h:2], a[:, 1:h:2] = -b[:, 0:h:2], a[:, 0:h:2]
    b[:, h:] = 0.0
    return {"left": b, "right": a, "weights": b.new_ones(b.shape[1] + 1)}


def _simplex(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the first r of the weights z^2 / |z|^2; zero if z is negligible in its own dtype."""
    z = scale_to_unit_peak(z.to(dtype))[0].to(z.dtype)
    total = z.square().sum()
    return torch.where(total > 0, z[:-1].square() / torch.where(total > 0, total, 1.0), 0.0)


def _without_negligible(x: Tensor, count: int) -> Tensor:
    """Set the first `count` columns to zero where their own dtype cannot hold the gradient."""
    keep = x.detach().abs().amax(dim=0) >= negligible(x.dtype)
    return torch.cat((torch.where(keep, x, 0.0)[:, :count], x[:, count:]), dim=1)


def _capped_last(b: Tensor) -> Tensor:
    """Normalise the paired columns; divide an unpaired last one by max(1, norm)."""
    h = b.shape[1] // 2 * 2
    last = b[:, h:]
    long = lp_norm(last.detach().mT, 2) > 1
    capped = torch.where(long, normalize_columns(last), torch.where(long, 0.0, last))
    return torch.cat((normalize_columns(b[:, :h]), capped), dim=1)


def _paired(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Write pairs of terms by sums and differences, u v^T + x y^T = (u+x)(v+y)^T/2 + ..."""
    h, half = u.shape[1] // 2 * 2, math.sqrt(0.5)
    u1, u2, v1, v2 = u[:, 0:h:2], u[:, 1:h:2], v[:, 0:h:2], v[:, 1:h:2]
    left = torch.cat((half * (u1 + u2), half * (u1 - u2), u[:, h:]), dim=1)
    right = torch.cat((half * (v1 + v2), half * (v1 - v2), v[:, h:]), dim=1)
    return left, right
