r"""What follows for combined updates from the sets that the updates are declared to be in.

Sums: norms add, :math:`\|\sum_i w_i W_i\| \le \sum_i |w_i| \|W_i\|`. With decorrelated singular
vectors the updates share no direction: the singular values of the result are at most those of
the updates, one after the other, and Schatten norms add as p-th powers. An average of entries of
one sign is at most the largest of them, so that TIES keeps
:math:`\|W\|_F^2 \le \sum_i w_i^2 \|W_i\|_F^2`, in any orthonormal coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lowrank_opt.merging.declared import average_set, frobenius_radius, limit_rank, truncated_set
from lowrank_opt.sets import (
    FeasibleSet,
    KyFanBall,
    NestedSet,
    RankAtMost,
    SchattenBall,
    SingularValueBox,
    WeightedSet,
)


def combined_set(
    method: str,
    declared: Sequence[FeasibleSet | None],
    weights: Sequence[float],
    *,
    rank: int,
    density: float,
    truncated: bool,
) -> FeasibleSet:
    """Return a set that contains the combined update, for all members of the declared sets.

    Parameters
    ----------
    method : str
        Of `lowrank_opt.merging.combine`.
    declared : sequence of FeasibleSet or None
    weights : sequence of float
        As they are used: of sum one for ``average``.
    rank : int
        Columns of the result.
    density : float
    truncated : bool
        Whether the result is a truncated SVD of what the method returns.
    """
    # Only updates that are added count.
    used = [(s, abs(w)) for s, w in zip(declared, weights, strict=True) if w != 0]
    sets = [s for s, _ in used if s is not None]
    sizes = [w for _, w in used]
    if len(sets) < len(used) or not sets:
        return RankAtMost(rank)
    if method in ("sum", "average", "svd", "drop_components"):
        grown = 1 / density if method == "drop_components" else 1.0
        if grown > 1 and not all(_is_spectral(s) for s in sets):
            return RankAtMost(rank)
        total = _sum_set(sets, [grown * w for w in sizes], rank=min(rank, _rank_sum(sets)))
        return truncated_set(total, rank) if truncated else limit_rank(total, rank)
    if method == "tsv":
        return limit_rank(_side_by_side(sets, sizes), rank)
    radii = [w * frobenius_radius(s) for s, w in zip(sets, sizes, strict=True)]
    if method in ("knots", "ties_dense"):
        return _frobenius_ball(math.hypot(*radii), rank)
    return _frobenius_ball(math.fsum(radii) / (density if method == "dare_dense" else 1.0), rank)


def scaled_set(feasible_set: FeasibleSet, factor: float) -> FeasibleSet:
    """Return the set of all ``factor W``, or a set that contains it; the factor is positive.

    Examples
    --------
    >>> scaled_set(SchattenBall(2, 1.5, 3), 2.0)
    SchattenBall(p=2, radius=3.0, rank=3)
    """
    if factor == 1:
        return feasible_set
    if isinstance(feasible_set, SchattenBall | KyFanBall):
        return replace(feasible_set, radius=factor * feasible_set.radius)
    if isinstance(feasible_set, SingularValueBox):
        return SingularValueBox(factor * b for b in feasible_set.bounds)
    if isinstance(feasible_set, WeightedSet | NestedSet):
        return replace(feasible_set, inner=scaled_set(feasible_set.inner, factor))
    return RankAtMost(feasible_set.rank)


def _sum_set(sets: Sequence[FeasibleSet], sizes: Sequence[float], *, rank: int) -> FeasibleSet:
    """Return the average's set, blown up by the sum of the weights."""
    total = math.fsum(sizes)
    average = average_set(sets, [w / total for w in sizes], rank=rank)
    # Weights that are shares do not blow anything up, whatever rounding makes of their sum.
    return scaled_set(average, 1.0 if math.isclose(total, 1.0, rel_tol=1e-12) else total)


def _side_by_side(sets: Sequence[FeasibleSet], sizes: Sequence[float]) -> FeasibleSet:
    rank = _rank_sum(sets)
    if all(isinstance(s, SchattenBall) for s in sets):
        balls = [s for s in sets if isinstance(s, SchattenBall)]
        p = max(ball.p for ball in balls)
        radii = [w * ball.radius for ball, w in zip(balls, sizes, strict=True)]
        top = max(radii)
        total = top if math.isinf(p) else top * sum((r / top) ** p for r in radii) ** (1 / p)
        return SchattenBall(p, total, rank)
    if all(isinstance(s, SingularValueBox) for s in sets):
        boxes = zip(sets, sizes, strict=True)
        return SingularValueBox(
            w * b for s, w in boxes if isinstance(s, SingularValueBox) for b in s.bounds
        )
    return _frobenius_ball(
        math.hypot(*(w * frobenius_radius(s) for s, w in zip(sets, sizes, strict=True))), rank
    )


def _is_spectral(feasible_set: FeasibleSet) -> bool:
    # Dropping singular components may leave a set that weighs rows, or that is shifted.
    return isinstance(feasible_set, SchattenBall | KyFanBall | SingularValueBox | RankAtMost)


def _rank_sum(sets: Sequence[FeasibleSet]) -> int:
    return sum(s.rank for s in sets)


def _frobenius_ball(radius: float, rank: int) -> FeasibleSet:
    return SchattenBall(2, radius, rank) if 0 < radius < math.inf else RankAtMost(rank)
