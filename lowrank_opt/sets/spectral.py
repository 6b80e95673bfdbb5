"""The named sets of singular values: Schatten balls, Ky Fan balls, boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.checks import check_order, check_positive_rank, check_radius
from lowrank_opt.errors import RadiusError
from lowrank_opt.linalg import lp_norm, project_lp_ball, project_top_k_sum, top_k_sum
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, alike
from lowrank_opt.sets.norm_ball import NormBall, mean_radius

_NAMES = {1.0: "nuclear", 2.0: "Frobenius", math.inf: "spectral"}


@dataclass(frozen=True)
class SchattenBall(NormBall):
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
        check_order(self.p)
        check_radius(self.radius)
        check_positive_rank(self.rank)

    @property
    def norm_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _NAMES.get(self.p, "Schatten p")

    @property
    def bound(self) -> str:
        return f"{_NAMES.get(self.p, f'Schatten-{self.p:g}')} <= {self.radius:g}"

    @property
    def frobenius_bound(self) -> float:
        """The radius, times :math:`r^{1/2 - 1/p}` for p > 2."""
        return self.radius * self.rank ** max(0.0, 0.5 - 1 / self.p)

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        """As Schatten norms decrease in p, balls of any orders are in those of the largest."""
        balls = alike(self, sets)
        if balls is None:
            return super().averaged(sets, weights, rank=rank)
        rank = min(rank, sum(ball.rank for ball in balls))
        return SchattenBall(max(b.p for b in balls), mean_radius(balls, weights), rank)

    def side_by_side(
        self, sets: Sequence[FeasibleSet], sizes: Sequence[float]
    ) -> FeasibleSet | None:
        """Schatten norms of terms without overlap add as p-th powers."""
        balls = alike(self, sets)
        if balls is None:
            return None
        p = max(ball.p for ball in balls)
        radii = [w * ball.radius for ball, w in zip(balls, sizes, strict=True)]
        top = max(radii)
        total = top if math.isinf(p) else top * sum((r / top) ** p for r in radii) ** (1 / p)
        return SchattenBall(p, total, sum(ball.rank for ball in balls))

    def gauge(self, values: Tensor) -> Tensor:
        """Return the norm as a function of the singular values."""
        return lp_norm(values, self.p)

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

    def dominating(self, values: Tensor) -> Tensor:
        powers = (values / self.radius).pow(self.p)
        if math.isinf(self.p):
            return torch.full_like(values, self.radius)
        slack = (1 - powers.sum()).clamp_min(0.0) / self.rank
        # At p = 40 the power of a value of 1e-9 underflows: without the maximum it would be lost.
        return torch.maximum(self.radius * (powers + slack).pow(1 / self.p), values)

    @property
    def typical_size(self) -> float:
        return self.radius / self.rank ** (1 / self.p)

    @property
    def lmo_rank(self) -> int:
        return 1 if self.p == 1 else self.rank


@dataclass(frozen=True)
class KyFanBall(NormBall):
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
    norm_name = "Ky Fan"

    def __post_init__(self) -> None:
        check_positive_rank(self.k, "k", what="the Ky Fan order k")
        check_radius(self.radius)
        check_positive_rank(self.rank)

    @property
    def bound(self) -> str:
        return f"Ky Fan-{self.k} <= {self.radius:g}"

    @property
    def frobenius_bound(self) -> float:
        """That of the extreme points: one value of the radius, or r equal ones of radius / k."""
        return self.radius * max(1.0, math.sqrt(self.rank) / self.k)

    def gauge(self, values: Tensor) -> Tensor:
        """Return the norm as a function of the singular values."""
        return top_k_sum(values, self.k)

    def project_singular_values(self, values: Tensor) -> Tensor:
        return project_top_k_sum(values, self.radius, self.k)

    def support_singular_values(self, values: Tensor) -> Tensor:
        r"""Return the maximiser; the dual norm is :math:`\max(v_1, \sum_i v_i / k)`."""
        k = min(self.k, len(values))
        if values.sum() / k > values[0]:
            return torch.full_like(values, self.radius / k)
        return torch.nn.functional.pad(values.new_tensor([self.radius]), (0, len(values) - 1))

    def dominating(self, values: Tensor) -> Tensor:
        slack = (self.radius - self.gauge(values)) / min(self.k, self.rank)
        return values + slack.clamp_min(0.0)

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
    norm_name = "each singular value"

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

    @property
    def bound(self) -> str:
        return f"singular values <= {self.bounds[0]:g}, ..."

    @property
    def size(self) -> float:
        return self.bounds[0]

    @property
    def frobenius_bound(self) -> float:
        """The Euclidean norm of the bounds."""
        return math.hypot(*self.bounds)

    def with_rank(self, rank: int) -> SingularValueBox:
        """Return the box of the first bounds."""
        return self if self.rank <= rank else SingularValueBox(self.bounds[:rank])

    def scaled(self, factor: float) -> SingularValueBox:
        """Return the box of the scaled bounds."""
        return self if factor == 1 else SingularValueBox(factor * b for b in self.bounds)

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        """By Weyl's inequality, a box with every averaged bound as often as there are terms."""
        boxes = alike(self, sets)
        if boxes is None:
            return super().averaged(sets, weights, rank=rank)
        rank = min(rank, sum(box.rank for box in boxes))
        return SingularValueBox(_weyl(boxes, weights)).with_rank(rank)

    def side_by_side(
        self, sets: Sequence[FeasibleSet], sizes: Sequence[float]
    ) -> FeasibleSet | None:
        """Singular values of terms without overlap are those of all terms."""
        boxes = alike(self, sets)
        if boxes is None:
            return None
        scaled = (box.scaled(w) for box, w in zip(boxes, sizes, strict=True))
        return SingularValueBox(b for box in scaled for b in box.bounds)

    def _limits(self, values: Tensor) -> Tensor:
        return values.new_tensor(self.bounds[: len(values)])

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return (values - self._limits(values)).amax()

    def dominating(self, values: Tensor) -> Tensor:
        """Return the bounds themselves."""
        return self._limits(values)

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


def _weyl(boxes: Sequence[SingularValueBox], weights: Sequence[float]) -> list[float]:
    if len(set(boxes)) == 1:
        return [b for b in boxes[0].bounds for _ in boxes]
    longest = max(box.rank for box in boxes)
    padded = [[*box.bounds, *[0.0] * (longest - box.rank)] for box in boxes]
    means = [
        math.fsum(p * b for p, b in zip(weights, ith, strict=True))
        for ith in zip(*padded, strict=True)
    ]
    return [b for b in means for _ in boxes]
