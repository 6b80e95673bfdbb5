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

from lowrank_opt.sets import FeasibleSet, RankAtMost, SchattenBall, SpectralSet


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
        # Dropping singular components may leave a set that weighs rows, or that is shifted.
        if grown > 1 and not all(isinstance(s, SpectralSet) for s in sets):
            return RankAtMost(rank)
        total = _sum_set(sets, [grown * w for w in sizes], rank=min(rank, _rank_sum(sets)))
        return total.truncated(rank) if truncated else total.with_rank(rank)
    if method == "tsv":
        return _side_by_side(sets, sizes).with_rank(rank)
    radii = [w * s.frobenius_bound for s, w in zip(sets, sizes, strict=True)]
    if method in ("knots", "ties_dense"):
        return _frobenius_ball(math.hypot(*radii), rank)
    return _frobenius_ball(math.fsum(radii) / (density if method == "dare_dense" else 1.0), rank)


def _sum_set(sets: Sequence[FeasibleSet], sizes: Sequence[float], *, rank: int) -> FeasibleSet:
    """Return the average's set, blown up by the sum of the weights."""
    total = math.fsum(sizes)
    average = sets[0].averaged(sets, [w / total for w in sizes], rank=rank)
    # Weights that are shares do not blow anything up, whatever rounding makes of their sum.
    return average.scaled(1.0 if math.isclose(total, 1.0, rel_tol=1e-12) else total)


def _side_by_side(sets: Sequence[FeasibleSet], sizes: Sequence[float]) -> FeasibleSet:
    radii = (w * s.frobenius_bound for s, w in zip(sets, sizes, strict=True))
    known = sets[0].side_by_side(sets, sizes)
    return _frobenius_ball(math.hypot(*radii), _rank_sum(sets)) if known is None else known


def _rank_sum(sets: Sequence[FeasibleSet]) -> int:
    return sum(s.rank for s in sets)


def _frobenius_ball(radius: float, rank: int) -> FeasibleSet:
    return SchattenBall(2, radius, rank) if 0 < radius < math.inf else RankAtMost(rank)
