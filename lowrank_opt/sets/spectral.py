"""The named sets of singular values: rank, Schatten balls, Ky Fan balls, boxes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import RadiusError, RankError
from lowrank_opt.linalg import lp_norm, project_lp_ball, project_top_k_sum, top_k_sum
from lowrank_opt.sets.base import SpectralSet


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise RankError(f"rank must be at least 1; got rank={rank}")


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise RadiusError(f"radius must be positive and finite; got radius={radius!r}")


@dataclass(frozen=True)
class RankAtMost(SpectralSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r\}`, unbounded.

    Examples
    --------
    >>> from lowrank_opt import LowRankOperator
    >>> RankAtMost(1).contains(LowRankOperator.from_dense(torch.eye(2)))
    False
    """

    rank: int

    def __post_init__(self) -> None:
        _check_rank(self.rank)

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return values.new_zeros(())

    def project_singular_values(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class SchattenBall(SpectralSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r,\ \|\sigma(W)\|_p \le \text{radius}\}`.

    Parameters
    ----------
    p : float
        In [1, inf]: 1 is the nuclear norm, 2 the Frobenius norm, inf the spectral norm.
    radius : float
        Positive.
    rank : int

    Raises
    ------
    RadiusError, RankError
        If a parameter is outside its domain.

    Examples
    --------
    >>> from lowrank_opt import LowRankOperator
    >>> ball = SchattenBall(p=1, radius=1.0, rank=2)
    >>> ball.excess(LowRankOperator.from_dense(torch.eye(2)))
    1.0
    """

    p: float
    radius: float
    rank: int

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise RadiusError(f"the Schatten order p must be in [1, inf]; got p={self.p!r}")
        _check_radius(self.radius)
        _check_rank(self.rank)

    def gauge(self, values: Tensor) -> Tensor:
        """Return the norm as a function of the singular values."""
        return lp_norm(values, self.p)

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return self.gauge(values) - self.radius

    def project_singular_values(self, values: Tensor) -> Tensor:
        return project_lp_ball(values, self.radius, self.p)

    def support_singular_values(self, values: Tensor) -> Tensor:
        r"""Return the maximiser in closed form, :math:`x_i \propto v_i^{q - 1}`, 1/p + 1/q = 1."""
        if math.isinf(self.p):
            return torch.full_like(values, self.radius)
        if self.p == 1:
            return torch.nn.functional.pad(values.new_tensor([self.radius]), (0, len(values) - 1))
        peak = values.amax()
        # A zero gradient is minimised by every member.
        ratio = values / peak if peak > 0 else torch.ones_like(values)
        x = ratio.pow(1 / (self.p - 1))
        return x * (self.radius / self.gauge(x))

    def unit(self, op: object) -> float:
        return self.radius

    @property
    def typical_size(self) -> float:
        return self.radius / self.rank ** (1 / self.p)

    @property
    def lmo_rank(self) -> int:
        return 1 if self.p == 1 else self.rank


@dataclass(frozen=True)
class KyFanBall(SpectralSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r,\ \sigma_1 + \dots + \sigma_k \le \text{radius}\}`.

    Parameters
    ----------
    k : int
        At least 1; the nuclear ball if it reaches `rank`.
    radius : float
        Positive.
    rank : int

    Raises
    ------
    RadiusError, RankError
        If a parameter is outside its domain.

    Examples
    --------
    >>> from lowrank_opt import LowRankOperator
    >>> KyFanBall(k=2, radius=2.0, rank=3).contains(LowRankOperator.from_dense(torch.eye(3)))
    True
    """

    k: int
    radius: float
    rank: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RankError(f"the Ky Fan order k must be at least 1; got k={self.k}")
        _check_radius(self.radius)
        _check_rank(self.rank)

    def gauge(self, values: Tensor) -> Tensor:
        """Return the norm as a function of the singular values."""
        return top_k_sum(values, self.k)

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return self.gauge(values) - self.radius

    def project_singular_values(self, values: Tensor) -> Tensor:
        return project_top_k_sum(values, self.radius, self.k)

    def support_singular_values(self, values: Tensor) -> Tensor:
        r"""Return the maximiser; the dual norm is :math:`\max(v_1, \sum_i v_i / k)`."""
        k = min(self.k, len(values))
        if values.sum() / k > values[0]:
            return torch.full_like(values, self.radius / k)
        return torch.nn.functional.pad(values.new_tensor([self.radius]), (0, len(values) - 1))

    def unit(self, op: object) -> float:
        return self.radius

    @property
    def typical_size(self) -> float:
        return self.radius / min(self.k, self.rank)


@dataclass(frozen=True)
class SingularValueBox(SpectralSet):
    r""":math:`\{W : \sigma_i(W) \le s_i\}` for decreasing bounds; the rank is their number.

    Parameters
    ----------
    bounds : iterable of float
        Nonnegative, finite, not all zero; stored in decreasing order.

    Raises
    ------
    RadiusError
        If a bound is negative, not finite, or all are zero.

    Examples
    --------
    >>> SingularValueBox([1.0, 2.0]).bounds
    (2.0, 1.0)
    """

    bounds: tuple[float, ...]

    def __init__(self, bounds: Iterable[float] | Tensor) -> None:
        values = bounds.tolist() if isinstance(bounds, Tensor) else bounds
        ordered = tuple(sorted((float(b) for b in values), reverse=True))
        if not ordered or not all(math.isfinite(b) and b >= 0 for b in ordered) or ordered[0] == 0:
            raise RadiusError(
                f"bounds must be nonnegative and finite, with a positive one; got {ordered}"
            )
        object.__setattr__(self, "bounds", ordered)

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of bounds."""
        return len(self.bounds)

    def _limits(self, values: Tensor) -> Tensor:
        return values.new_tensor(self.bounds[: len(values)])

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return (values - self._limits(values)).amax()

    def project_singular_values(self, values: Tensor) -> Tensor:
        return torch.minimum(values, self._limits(values))

    def support_singular_values(self, values: Tensor) -> Tensor:
        """Return the bounds themselves."""
        return self._limits(values)

    def unit(self, op: object) -> float:
        return self.bounds[0]

    @property
    def typical_size(self) -> float:
        return self.bounds[0]
