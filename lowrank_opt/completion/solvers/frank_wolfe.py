"""Frank-Wolfe with corrective steps: the convex problem over a spectral set, to any gap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.certificates.support import sparse_matrix
from lowrank_opt.completion.loop.progress import Progress
from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.completion.solvers.iterates import Iterate, run
from lowrank_opt.completion.solvers.subspace_fit import SubspaceFit, SubspacePoint
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, SpectralSet, WeightedSet

if TYPE_CHECKING:
    import scipy.sparse as sp

_FEWEST_STEPS, _MOST_STEPS = 20, 640
_MUCH, _LITTLE, _SMALL = 0.9, 0.97, 0.03


def frank_wolfe(
    observations: Observations,
    feasible_set: FeasibleSet,
    *,
    bias: Literal["additive"] | None = "additive",
    bias_penalty: float = 1.0,
    tolerance: float = 1e-4,
    max_iterations: int = 300,
    validation: float | Observations | None = None,
    patience: int = 20,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> CompletionResult:
    r"""Complete a matrix over a convex set of singular values, until the duality gap is small.

    Minimises :math:`\tfrac12 \sum_k w_k (W_{ij} + \mu + a_i + b_j - v_k)^2
    + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)` over W in the set and over the biases, from W = 0.
    No start, no rank and no step length to choose. With G the sparse gradient, each iteration

    1. asks the linear minimisation oracle of the set at G, by a sparse singular value
       decomposition, and adds its singular vectors to the subspaces of rows and columns;
    2. adds those of G on the subspaces so far, :math:`G V` and :math:`G^T U`, in which a step of
       the projected gradient method lies;
    3. solves the problem within the subspaces, a k x k core, approximately (accelerated projected
       gradients, biases included), and drops directions whose singular values became zero.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        On the CPU; computed with in float64.
    feasible_set : FeasibleSet
        A bounded `SpectralSet`, or a `WeightedSet` of one.
    bias : {"additive"} or None
    bias_penalty : float
        :math:`\lambda_b`; positive for a certificate over the biases too.
    tolerance : float
        Stop when the duality gap is below this share of the objective.
    max_iterations : int
    validation, patience, generator, progress
        As in `complete`.

    Returns
    -------
    CompletionResult
        Every iterate is in the set. CONVERGED means that the gap is reached, and that
        `CompletionResult.certificate` proves it. Where the best matrix of the convex hull has a
        larger rank than the set allows, the projections truncate to that rank: the result is then
        a local minimum, with a gap that stays: STALLED, when an iteration lowers the objective by
        less than 3 % of `tolerance`. A nuclear ball with ``rank=min(m, n)`` never truncates.

    Raises
    ------
    OptionError
        If the set is of another kind, or a setting is outside its domain.
    CertificateError
        If the set is unbounded.

    References
    ----------
    M. Jaggi, Revisiting Frank-Wolfe (ICML 2013), algorithm 4 (fully corrective) and section 2 (the
    gap). Steps that remove directions instead of adding them: R. M. Freund, P. Grigas and
    R. Mazumder, An extended Frank-Wolfe method with in-face directions (SIAM J. Optim. 2017).

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> observed = Observations.from_dense(torch.diag(torch.tensor([3.0, 1.0])))
    >>> ball = SchattenBall(p=1, radius=2.0, rank=2)
    >>> result = frank_wolfe(observed, ball, bias=None, tolerance=1e-6)
    >>> result.operator.singular_values().round(decimals=3), result.certificate().gap < 1e-5
    (tensor([2.]), True)
    """
    check_amounts(bias_penalty=bias_penalty, tolerance=tolerance)
    check_counts(max_iterations=max_iterations, patience=patience)
    inner, row_weights, col_weights = _taken_apart(feasible_set)
    fitted, held_out = training_and_validation(observations, validation, generator)
    biased = bias is not None
    fit = SubspaceFit(
        fitted.to(dtype=torch.float64),
        weighted_mean(fitted) if biased else 0.0,
        inner,
        row_weights,
        col_weights,
        bias_penalty=bias_penalty if biased else None,
    )
    problem = ConvexProblem(fitted, feasible_set, (bias_penalty or None) if biased else None)
    return run(
        _iterates(fit, feasible_set, tolerance, fitted.dtype),
        fitted,
        held_out=held_out,
        tolerance=0.0,
        max_iterations=max_iterations,
        patience=patience,
        progress=progress,
        problem=problem,
    )


def _iterates(
    fit: SubspaceFit, feasible_set: FeasibleSet, tolerance: float, dtype: torch.dtype
) -> Iterator[Iterate]:
    point, steps = fit.start(), _FEWEST_STEPS
    objective, lowest_gap = fit.objective(point), math.inf
    while True:
        G = sparse_matrix(fit.residual_gradient(point))
        # The atom does not depend on the unit, and squares of tiny entries would vanish.
        atom = feasible_set.lmo(G / (float(abs(G).max()) or 1.0))
        gap = _gap(fit, point, G, atom)
        operator, bias = fit.operator(point).to(dtype=dtype), fit.bias(point).to(dtype=dtype)
        yield Iterate(operator, bias, objective, gap, settled=gap <= tolerance * objective)
        # Subspaces that no longer bring much deserve a more exact solution.
        if gap > _LITTLE * lowest_gap and not _is_truncated(point, fit):
            steps = min(2 * steps, _MOST_STEPS)
        elif gap < _MUCH * lowest_gap:
            steps = max(steps // 2, _FEWEST_STEPS)
        lowest_gap = min(gap, lowest_gap)
        wide, before = _widened(fit, point, G, atom), objective
        while not objective < before:
            new = fit.improve(wide, steps).compressed()
            objective = fit.objective(new)
            if objective < before:
                point = new
            elif steps == _MOST_STEPS:
                return
            steps = min(2 * steps, _MOST_STEPS) if not objective < before else steps
        if _is_truncated(point, fit) and before - objective < _SMALL * tolerance * before:
            return


def _is_truncated(point: SubspacePoint, fit: SubspaceFit) -> bool:
    """Return whether the rank bound of the set may stand in the way of the gap."""
    rank = fit.feasible_set.rank
    return len(point.core) >= rank < min(len(point.rows), len(point.cols))


def _widened(
    fit: SubspaceFit, point: SubspacePoint, G: sp.csr_array, atom: LowRankOperator
) -> SubspacePoint:
    """Add the singular vectors of the atom and the gradient on the present subspaces."""
    a, b = fit.a.unsqueeze(1), fit.b.unsqueeze(1)
    left = torch.from_numpy(G @ (point.V * b).numpy()) * a
    right = torch.from_numpy(G.T @ (point.U * a).numpy()) * b
    return point.widened(
        torch.cat((atom.left.double() / a, left), dim=1),
        torch.cat((atom.right.double() / b, right), dim=1),
    )


def _gap(fit: SubspaceFit, point: SubspacePoint, G: sp.csr_array, atom: LowRankOperator) -> float:
    """Return the duality gap: of W over the set, and of the biases over all numbers."""
    gap = _inner_product(G, fit.operator(point)) - _inner_product(G, atom)
    rate = fit.bias_penalty
    if not rate:
        return gap
    for x, sums in ((point.rows, G.sum(axis=1)), (point.cols, G.sum(axis=0))):
        gap += float((rate * x + torch.from_numpy(sums)).square().sum()) / (2 * rate)
    return gap


def _inner_product(G: sp.csr_array, op: LowRankOperator) -> float:
    left: Tensor = op.left.double() * op.scale.double()
    return float((left * torch.from_numpy(G @ op.right.double().numpy())).sum())


def _taken_apart(feasible_set: FeasibleSet) -> tuple[SpectralSet, Tensor | None, Tensor | None]:
    match feasible_set:
        case SpectralSet():
            return feasible_set, None, None
        case WeightedSet(inner=SpectralSet() as inner, row_weights=a, col_weights=b):
            return inner, a, b
        case _:
            raise OptionError(
                "frank_wolfe needs a spectral set or a weighted one; got "
                f"{feasible_set}: use complete with a parameterization of the set"
            )
