"""The contract of a ball of a norm: one function of the singular values, and its projection."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from lowrank_opt.linalg import first_inside
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, alike


class NormBall(SpectralSet):
    r""":math:`\{W : \mathrm{rank}\, W \le r,\ \Phi(\sigma(W)) \le \text{radius}\}`, Phi a norm.

    The norm is unitarily invariant: a symmetric gauge of the singular values (von Neumann, 1937).
    A subclass is a frozen dataclass with fields `radius` and `rank`. It writes `gauge`,
    `norm_name` and `project_singular_values`, and inherits everything else.

    Attributes
    ----------
    radius : float
        Positive.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Spectral(NormBall):
    ...     radius: float
    ...     rank: int
    ...     norm_name = "spectral"
    ...
    ...     def gauge(self, values):
    ...         return values.amax()
    ...
    ...     def project_singular_values(self, values):
    ...         return values.clamp_max(self.radius)
    >>> Spectral(2.0, rank=3).scaled(2.0).bound
    'spectral <= 4'
    """

    radius: float

    @abstractmethod
    def gauge(self, values: Tensor) -> Tensor:
        """Return the norm, a differentiable function of the singular values in any order."""

    @property
    def bound(self) -> str:
        return f"{self.norm_name} <= {self.radius:g}"

    @property
    def size(self) -> float:
        return self.radius

    @property
    def frobenius_bound(self) -> float:
        """By monotonicity, sqrt(rank) times the largest value that a member can have."""
        first = self.gauge(torch.eye(1, self.rank, dtype=torch.float64)[0])
        return math.sqrt(self.rank) * self.radius / float(first)

    def resized(self, *, radius: float, rank: int) -> Self:
        """Return the ball of the same norm with another radius and rank."""
        return replace(self, radius=radius, rank=rank)  # pyright: ignore[reportArgumentType]

    def with_rank(self, rank: int) -> Self:
        """Return the members of rank at most `rank`."""
        return self if self.rank <= rank else self.resized(radius=self.radius, rank=rank)

    def scaled(self, factor: float) -> Self:
        """Return the ball of radius ``factor * radius``."""
        return self if factor == 1 else self.resized(radius=factor * self.radius, rank=self.rank)

    def dominating(self, values: Tensor) -> Tensor:
        """Return a point of the sphere with no entry below that of the member `values`.

        Here, the same number added to all, found by bisection; named balls have closed forms.
        """
        most = self.radius / self.gauge(torch.ones_like(values))
        return first_inside(
            lambda t: values + (most - t), lambda x: self.gauge(x) <= self.radius, most
        )

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        """Norms are convex: of balls of one norm, the one of the averaged radius."""
        balls = alike(self, sets)
        if balls is None or any(ball.unit_ball != self.unit_ball for ball in balls):
            return super().averaged(sets, weights, rank=rank)
        rank = min(rank, sum(ball.rank for ball in balls))
        return self.resized(radius=mean_radius(balls, weights), rank=rank)

    @property
    def unit_ball(self) -> Self:
        """The ball of radius one and rank one: equal for balls of the same norm."""
        return self.resized(radius=1.0, rank=1)

    def singular_value_excess(self, values: Tensor) -> Tensor:
        return self.gauge(values) - self.radius

    def nearest_singular_values(self, values: Tensor) -> Tensor:
        """Return the projection of values of any size, to their rounding.

        That of v + x, for the x of the ball farthest along v, is x; and far outside v + x rounds
        to v. No `project_singular_values` needs to mind numbers beside which the radius vanishes.
        """
        eps = torch.finfo(values.dtype).eps
        if eps * float(values.amax()) > self.frobenius_bound:
            # Of several members equally far, the one that treats equal values alike.
            found = self.support_singular_values(values)
            _, group, counts = torch.unique_consecutive(
                values, return_inverse=True, return_counts=True
            )
            sums = torch.zeros_like(counts, dtype=found.dtype).index_add(0, group, found)
            return (sums / counts)[group]
        return self.project_singular_values(values)

    def unit(self, op: LowRankOperator) -> float:
        return self.radius


def mean_radius(balls: Sequence[NormBall], weights: Sequence[float]) -> float:
    """Return the weighted mean of the radii."""
    # Equal radii stay what they are, whatever rounding makes of the sum of the weights.
    radii = [ball.radius for ball in balls]
    if len(set(radii)) == 1:
        return radii[0]
    return math.fsum(p * radius for p, radius in zip(weights, radii, strict=True))
