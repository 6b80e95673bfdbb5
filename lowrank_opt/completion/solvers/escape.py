r"""Out of a point where descent has settled, along the direction of the certificate.

Over a convex set the linear minimisation oracle at the gradient G is the matrix that proves the
gap: :math:`\langle G, W - Z \rangle` is that gap, and the segment from W to Z descends. Its best
point is put into the parameterization through its right inverse. The factors are balanced then, and
columns that had become zero, from which no gradient leads away, are filled. Under a penalty the
direction is that of the largest singular value of G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.support import sparse_matrix
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.spectral_start import spectral_start
from lowrank_opt.completion.solvers.frank_wolfe import (
    corrective_steps,
    subspace_fit,
)
from lowrank_opt.errors import LowRankError
from lowrank_opt.kernels import observed_entries
from lowrank_opt.linalg import leading_svd
from lowrank_opt.observations.parts import whole
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, SchattenBall, WeightedSet

if TYPE_CHECKING:
    import scipy.sparse as sp

    from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
    from lowrank_opt.completion.model.bias import AdditiveBias
    from lowrank_opt.completion.model.objective import Objective

# Steps that are tried, as shares of the best one before the rank is cut.
_SHARES = (1.0, 0.25)
# Corrective steps, and projected gradient steps within each of them, at most.
_CORRECTIONS, _POLISHING = 10, 160
# Size of a column that is filled, relative to the step; and what counts as an empty one.
_FILLED, _EMPTY = 1e-2, 1e-9


@torch.no_grad()
def escape(objective: Objective, problem: ConvexProblem, enough: float) -> bool:
    """Move to a point that is better by a share of the objective; return whether there is one.

    Parameters
    ----------
    objective : Objective
        Its parameterization stays where it is if no point tried is better, or if it has no right
        inverse.
    problem : ConvexProblem
        The same one, without its parameters.
    enough : float
        The share.

    References
    ----------
    Steps of M. Jaggi, Revisiting Frank-Wolfe (ICML 2013), algorithm 1, with exact line search; as a
    way out of local minima of factors: Journee, Bach, Absil and Sepulchre (2010), Low-rank
    optimization on the cone of positive semidefinite matrices, section 4.
    """
    before, kept = float(objective.value()), [x.clone() for x in objective.free]
    chart = objective.parameterization
    for target in ways_out(problem, chart().detach(), objective.bias(), chart.rank):
        try:
            _ = chart.assign(target, project=True)
        except LowRankError:
            break
        if float(objective.value()) < before * (1 - enough):
            return True
    for x, old in zip(objective.free, kept, strict=True):
        x.copy_(old)
    return False


def ways_out(
    problem: ConvexProblem, operator: LowRankOperator, bias: AdditiveBias, rank: int
) -> Iterator[LowRankOperator]:
    """Yield points along the direction of the certificate, cut to a rank.

    In the dtype of the operator; none if nothing descends.
    """
    W, observations = operator.to(dtype=torch.float64), whole(problem.observations)
    observations = observations.to(dtype=torch.float64)
    entries, bias = observed_entries(W, observations), bias.to(dtype=torch.float64)
    shift = bias.predict(observations.rows, observations.cols) - observations.values
    w = 1.0 if observations.weights is None else observations.weights
    y = w * (entries + shift)
    # The direction does not depend on the unit, and squares of tiny entries would vanish.
    G = sparse_matrix(observations.with_values(y / (float(y.abs().max()) or 1.0)))
    sizes = W.singular_values()
    free = rank - 1 - int((sizes > _EMPTY * sizes[:1]).sum())
    U, sigma, V = (x.to(y.device) for x in leading_svd(G, 1 + max(free, 0)))
    leading = (U, sigma, V)
    atom, shrinks, charge = _atom(problem.constraint, G, leading)
    change = observed_entries(atom, observations) - shrinks * entries
    slope, curvature = float((y * change).sum()) + charge, float((w * change.square()).sum())
    if not (slope < 0 and curvature > 0):
        return
    step = min(-slope / curvature, 1.0 if shrinks else math.inf)
    for t in (share * step for share in _SHARES):
        target = _sum((1 - shrinks * t) * W, t * atom, t * _filling(atom, leading))
        cut = target.truncate(rank) if target.rank > rank else target
        yield cut.to(dtype=operator.dtype)


@torch.no_grad()
def move_to_spectral_start(objective: Objective, problem: ConvexProblem) -> bool:
    """Move to the best multiple of the truncated SVD of the entries; return whether that is there.

    From a start at random a rank that binds has minima that are far worse than its best; from
    there they are rare. The biases are those that fit without any matrix.
    """
    chart, observations = objective.parameterization, whole(problem.observations)
    rate = objective.bias_penalty
    try:
        fit = ObservedFit.of(
            observations, bias="additive" if objective.fit_bias else None, bias_penalty=rate
        )
        point = spectral_start(fit, chart.rank)
        target = fit.spread * LowRankOperator(point.U, point.s, point.V)
        _ = chart.assign(target.to(dtype=observations.dtype), project=True)
    except LowRankError:
        return False
    objective.move_biases(fit.bias)
    return True


@torch.no_grad()
def polish(objective: Objective, problem: ConvexProblem, gap: float, *, effort: int = 1) -> bool:
    """Move to the optimum by corrective steps of Frank-Wolfe; return whether that is better.

    For sets of singular values, close to the optimum: where factors are badly conditioned and
    descent crawls, the problem in W is not.

    Parameters
    ----------
    objective : Objective
        Its parameterization stays where it is if there is nothing better.
    problem : ConvexProblem
    gap : float
        Relative to the objective.
    effort : int
        Multiplies the largest number of steps.
    """
    feasible_set, chart = problem.constraint, objective.parameterization
    if not (isinstance(feasible_set, FeasibleSet) and feasible_set.of_singular_values):
        return False
    op, rate = chart().detach(), objective.bias_penalty if objective.fit_bias else None
    hull = _of_any_rank(feasible_set, min(op.shape))
    fit = subspace_fit(whole(objective.observations), hull, objective.mean, rate)
    start = fit.point(op.to(dtype=torch.float64), objective.bias())
    steps = corrective_steps(fit, hull, gap / 2, torch.float64, start, effort * _POLISHING)
    best = next(steps)
    for better in islice(steps, effort * _CORRECTIONS):
        best = better
        if best.settled:
            break
    before = float(objective.value())
    kept = [x.clone() for x in objective.variables]
    try:
        _ = chart.assign(best.operator.to(dtype=op.dtype), project=True)
    except LowRankError:
        return False
    objective.move_biases(best.bias)
    if float(objective.value()) < before:
        return True
    for x, old in zip(objective.variables, kept, strict=True):
        x.copy_(old)
    return False


def _atom(
    constraint: FeasibleSet | float, G: sp.csr_array, leading: tuple[Tensor, Tensor, Tensor]
) -> tuple[LowRankOperator, float, float]:
    """Return where the direction leads, by how much W shrinks on the way, and a unit's penalty."""
    if isinstance(constraint, FeasibleSet):
        return constraint.lmo(G).to(dtype=torch.float64, device=leading[0].device), 1.0, 0.0
    U, _, V = leading
    return LowRankOperator(U[:, :1], -U.new_ones(1), V[:, :1]), 0.0, constraint


def _filling(atom: LowRankOperator, leading: tuple[Tensor, Tensor, Tensor]) -> LowRankOperator:
    """Return small columns for the directions after the first, each the smaller the less it does.

    They are for gradients to grow; their number is that of the empty columns.
    """
    U, sigma, V = leading
    size = _FILLED * float(atom.schatten_norm(float("inf")))
    return LowRankOperator(U[:, 1:], -size * sigma[1:] / sigma[0], V[:, 1:])


def _of_any_rank(feasible_set: FeasibleSet, rank: int) -> FeasibleSet:
    """Return the convex hull of a nuclear ball; other sets as they are."""
    match feasible_set:
        case WeightedSet(inner=inner, row_weights=a, col_weights=b):
            return WeightedSet(_of_any_rank(inner, rank), a, b)
        case SchattenBall(p=1, radius=radius):
            return SchattenBall(1, radius, rank)
        case _:
            return feasible_set


def _sum(*parts: LowRankOperator) -> LowRankOperator:
    left, scale, right = (torch.cat(x, dim=-1) for x in zip(*parts, strict=True))
    return LowRankOperator(left, scale, right)
