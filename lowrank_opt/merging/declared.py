r"""What follows for an average from the sets that its terms are in.

A norm is convex: :math:`\|\sum_k p_k W_k\| \le \sum_k p_k \|W_k\|`. Ranks add. Singular values
follow Weyl's inequality, :math:`\sigma_{K(i-1)+1}(\sum_k p_k W_k) \le \sum_k p_k \sigma_i(W_k)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    NestedSet,
    RankAtMost,
    SchattenBall,
    SingularValueBox,
    SpectralSet,
    WeightedSet,
)


def average_set(sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int) -> FeasibleSet:
    r"""Return a set that contains :math:`\sum_k p_k W_k` for all members W_k of the sets.

    Parameters
    ----------
    sets : sequence of FeasibleSet
        Of one matrix shape.
    weights : sequence of float
        Nonnegative.
    rank : int
        An upper bound on the rank of the sum, from elsewhere.

    Returns
    -------
    FeasibleSet
        Schatten balls give one of the largest p (norms decrease in p) and the averaged radius, Ky
        Fan balls of one k likewise; boxes a box with every averaged bound K times; equal weights
        or frames stay. Other kinds, or different ones, leave the bound on the rank.

    Examples
    --------
    >>> average_set([SchattenBall(2, 1.0, 3), SchattenBall(2, 2.0, 3)], [0.5, 0.5], rank=6)
    SchattenBall(p=2, radius=1.5, rank=6)
    """
    shared = _shared_frame(sets, weights, rank)
    if shared is not None:
        return shared
    rank = min(rank, sum(s.rank for s in sets))
    if all(isinstance(s, SchattenBall) for s in sets):
        balls = [s for s in sets if isinstance(s, SchattenBall)]
        return SchattenBall(max(b.p for b in balls), _radius(balls, weights), rank)
    if all(isinstance(s, KyFanBall) for s in sets):
        fans = [s for s in sets if isinstance(s, KyFanBall)]
        if len({fan.k for fan in fans}) == 1:
            return KyFanBall(fans[0].k, _radius(fans, weights), rank)
    if all(isinstance(s, SingularValueBox) for s in sets):
        boxes = [s for s in sets if isinstance(s, SingularValueBox)]
        return SingularValueBox(_weyl(boxes, weights)[:rank])
    return RankAtMost(rank)


def limit_rank(feasible_set: FeasibleSet, rank: int) -> FeasibleSet:
    """Return the set of its members of rank at most `rank`, or a set that contains them."""
    if feasible_set.rank <= rank:
        return feasible_set
    if isinstance(feasible_set, SingularValueBox):
        return SingularValueBox(feasible_set.bounds[:rank])
    if isinstance(feasible_set, RankAtMost | SchattenBall | KyFanBall):
        return replace(feasible_set, rank=rank)
    if isinstance(feasible_set, WeightedSet | NestedSet):
        return replace(feasible_set, inner=limit_rank(feasible_set.inner, rank))
    return RankAtMost(rank)


def truncated_set(feasible_set: FeasibleSet, rank: int) -> FeasibleSet:
    """Return a set that contains the truncated SVD of each member.

    Truncation lowers every singular value, but is not that of C where rows are weighted.
    """
    core = feasible_set.inner if isinstance(feasible_set, NestedSet) else feasible_set
    return limit_rank(feasible_set, rank) if isinstance(core, SpectralSet) else RankAtMost(rank)


def frobenius_radius(feasible_set: FeasibleSet) -> float:
    r"""Return the largest Frobenius norm of a member, or a bound on it; infinite if there is none.

    Schatten balls: radius, for p > 2 times :math:`r^{1/2 - 1/p}`. Ky Fan balls: the extreme
    points of the set of singular values are a single one of size `radius` and r equal ones of size
    ``radius / k``.

    Examples
    --------
    >>> frobenius_radius(SchattenBall(float("inf"), 1.0, 4))
    2.0
    """
    r = feasible_set.rank
    if isinstance(feasible_set, SchattenBall):
        return feasible_set.radius * r ** max(0.0, 0.5 - 1 / feasible_set.p)
    if isinstance(feasible_set, KyFanBall):
        return feasible_set.radius * max(1.0, math.sqrt(r) / feasible_set.k)
    if isinstance(feasible_set, SingularValueBox):
        return math.hypot(*feasible_set.bounds)
    if isinstance(feasible_set, NestedSet):
        return frobenius_radius(feasible_set.inner)
    if isinstance(feasible_set, WeightedSet):
        a, b = (_largest(w) for w in (feasible_set.row_weights, feasible_set.col_weights))
        return a * b * frobenius_radius(feasible_set.inner)
    return math.inf


def _radius(balls: Sequence[SchattenBall] | Sequence[KyFanBall], weights: Sequence[float]) -> float:
    # Equal radii stay what they are, whatever rounding makes of the sum of the weights.
    radii = [ball.radius for ball in balls]
    if len(set(radii)) == 1:
        return radii[0]
    return math.fsum(p * radius for p, radius in zip(weights, radii, strict=True))


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


def _shared_frame(
    sets: Sequence[FeasibleSet], weights: Sequence[float], rank: int
) -> FeasibleSet | None:
    """Average what is inside of equal weights or equal frames."""
    first = sets[0]
    if isinstance(first, WeightedSet):
        inner = [
            s.inner
            for s in sets
            if isinstance(s, WeightedSet)
            and _same(s.row_weights, first.row_weights)
            and _same(s.col_weights, first.col_weights)
        ]
    elif isinstance(first, NestedSet):
        inner = [
            s.inner
            for s in sets
            if isinstance(s, NestedSet)
            and _same(s.left, first.left)
            and _same(s.right, first.right)
        ]
        rank = min(rank, first.left.shape[1], first.right.shape[1])
    else:
        return None
    if len(inner) != len(sets):
        return RankAtMost(min(rank, sum(s.rank for s in sets)))
    return replace(first, inner=average_set(inner, weights, rank=rank))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _largest(weights: Tensor | None) -> float:
    return 1.0 if weights is None else float(weights.max())
