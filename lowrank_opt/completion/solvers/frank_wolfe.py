"""Frank-Wolfe with corrective steps: the convex problem over a spectral set, to any gap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.certificates.support import sparse_matrix
from lowrank_opt.completion.loop.checkpoint import packed, unpacked
from lowrank_opt.completion.loop.remembered import Memory, Remembered
from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.completion.solvers.subspace_fit import SubspaceFit, SubspacePoint
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, SpectralSet

if TYPE_CHECKING:
    import scipy.sparse as sp

_FEWEST_STEPS, _MOST_STEPS = 20, 640
_MUCH, _LITTLE, _SMALL = 0.9, 0.97, 0.03


@dataclass(frozen=True)
class FrankWolfe:
    r"""Frank-Wolfe with corrective steps over a convex set, until the duality gap is small.

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
    gap : float
        Stop when the duality gap is below this share of the objective.
    max_iterations : int

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Computed in float64. Every iterate is in the set. CONVERGED means that the gap is reached, and
    that `CompletionResult.certificate` proves it, with a positive bias penalty over the biases too.
    Where the best matrix of the convex hull has a larger rank than the set allows, the projections
    truncate to that rank: the result is then a local minimum, with a gap that stays: RANK_BINDS or
    GAP_OPEN, when an iteration lowers the objective by less than 3 % of `gap`. A nuclear ball with
    ``rank=min(m, n)`` never truncates.

    References
    ----------
    M. Jaggi, Revisiting Frank-Wolfe (ICML 2013), algorithm 4 (fully corrective) and section 2 (the
    gap). Steps that remove directions instead of adding them: R. M. Freund, P. Grigas and
    R. Mazumder, An extended Frank-Wolfe method with in-face directions (SIAM J. Optim. 2017).

    Examples
    --------
    >>> FrankWolfe(gap=1e-6)
    FrankWolfe(gap=1e-06, max_iterations=300)
    """

    traits: ClassVar[Traits] = Traits(sets=("spectral set",), certificate=True, checkpoint=True)
    gap: float = 1e-4
    max_iterations: int = 300

    def __post_init__(self) -> None:
        check_amounts(gap=self.gap)
        check_counts(max_iterations=self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate.

        Raises
        ------
        CertificateError
            If the set is unbounded.
        """
        feasible_set, rate = problem.feasible_set, problem.bias_rate
        assert feasible_set is not None, "the traits let no other model pass"
        fitted, held_out = run.split(problem.observations)
        mean = 0.0 if rate is None else weighted_mean(fitted)
        fit = subspace_fit(fitted, feasible_set, mean, rate)
        return iterate(
            Remembered(
                lambda memory: corrective_steps(
                    fit, feasible_set, self.gap, fitted.dtype, memory=memory
                )
            ),
            fitted,
            held_out,
            run,
            tolerance=0.0,
            max_iterations=self.max_iterations,
            problem=ConvexProblem(fitted, feasible_set, rate or None),
            gap=self.gap,
        )


def corrective_steps(
    fit: SubspaceFit,
    feasible_set: FeasibleSet,
    tolerance: float,
    dtype: torch.dtype,
    start: SubspacePoint | None = None,
    most_steps: int = _MOST_STEPS,
    *,
    memory: Memory | None = None,
) -> Iterator[Iterate]:
    """Yield a start, zero by default, and the matrices that corrective steps lead to."""
    memory = {} if memory is None else memory
    point = start or fit.start()
    point = packed(point, memory.get("point", unpacked(point)))
    numbers = [_FEWEST_STEPS, fit.objective(point), math.inf]
    steps, objective, lowest_gap = memory.get("numbers", numbers)
    while True:
        memory |= {"point": unpacked(point), "numbers": [steps, objective, lowest_gap]}
        G = sparse_matrix(fit.residual_gradient(point))
        # The atom does not depend on the unit, and squares of tiny entries would vanish.
        atom = feasible_set.lmo(G / (float(abs(G).max()) or 1.0)).to(device=fit.a.device)
        gap = _gap(fit, point, G, atom)
        operator, bias = fit.operator(point).to(dtype=dtype), fit.bias(point).to(dtype=dtype)
        yield Iterate(operator, bias, objective, gap, settled=gap <= tolerance * objective)
        # Subspaces that no longer bring much deserve a more exact solution.
        if gap > _LITTLE * lowest_gap and not _is_truncated(point, fit):
            steps = min(2 * steps, most_steps)
        elif gap < _MUCH * lowest_gap:
            steps = max(steps // 2, _FEWEST_STEPS)
        lowest_gap = min(gap, lowest_gap)
        wide, before = _widened(fit, point, G, atom), objective
        while not objective < before:
            new = fit.improve(wide, steps).compressed()
            objective = fit.objective(new)
            if objective < before:
                point = new
            elif steps == most_steps:
                return
            steps = min(2 * steps, most_steps) if not objective < before else steps
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
    left = _product(G, point.V * b) * a
    right = _product(G.T, point.U * a) * b
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
        slopes = rate * x + torch.from_numpy(sums).to(x.device)
        gap += float(slopes.square().sum()) / (2 * rate)
    return gap


def _inner_product(G: sp.csr_array, op: LowRankOperator) -> float:
    left: Tensor = op.left.double() * op.scale.double()
    return float((left * _product(G, op.right.double())).sum())


def _product(G: sp.csr_array, x: Tensor) -> Tensor:
    """Return ``G @ x`` where x is; the sparse gradient is on the host, for the oracle."""
    return torch.from_numpy(G @ x.cpu().numpy()).to(x.device)


def subspace_fit(
    fitted: Observations, feasible_set: FeasibleSet, mean: float, bias_penalty: float | None
) -> SubspaceFit:
    """Return the problem within subspaces, for a set `of_singular_values`."""
    inner, a, b = feasible_set.unweighted
    assert isinstance(inner, SpectralSet), "the traits let no other set pass"
    exact = fitted.to(dtype=torch.float64)
    return SubspaceFit(exact, mean, inner, a, b, bias_penalty=bias_penalty)
