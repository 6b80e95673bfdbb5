"""Gauss-Newton on the manifold of matrices of a fixed rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from lowrank_opt.completion.loop.checkpoint import packed, unpacked
from lowrank_opt.completion.loop.remembered import Memory
from lowrank_opt.completion.model.checks import check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point, Tangent
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.rank_stages import (
    TRAITS,
    Start,
    State,
    check_options,
    complete_at_rank,
)
from lowrank_opt.completion.solvers.fixed_rank.riemannian import (
    exact_step,
    line_search,
    riemannian_gradient,
)
from lowrank_opt.completion.solvers.traits import Traits

# Share of the gradient that the inner iteration may leave far from a solution.
_FORCING = 0.1


@dataclass(frozen=True)
class GaussNewton:
    r"""Gauss-Newton steps at a fixed rank.

    Each step minimises :math:`\sum_k w_k ((W + \xi)_{i_k j_k} - v_k)^2` over tangent vectors
    :math:`\xi` by conjugate gradients for least squares, and takes the nearest matrix of the rank
    to :math:`W + \xi`, halving the step until the loss decreases enough. In tangent coordinates
    the conditioning is that of the sampling alone, whatever the singular values. The forcing terms
    fall like the root of the residual: on exact data convergence is superlinear, of order 3/2.

    Parameters
    ----------
    inner_iterations : int
        Largest number of conjugate gradient steps in each least-squares problem. Ended early they
        also regularise: directions that no entry determines stay at zero.
    start, tolerance, max_iterations
        As in `Riemannian`; an iteration is a Gauss-Newton step.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    References
    ----------
    Zilber and Nadler (2022), GNMF: a simple and efficient Gauss-Newton method for low rank matrix
    completion, equation 7, in the tangent coordinates of Luo, Huang, Li and Zhang (2024),
    Recursive importance sketching for rank constrained least squares. Forcing terms: Eisenstat and
    Walker (1996).

    Examples
    --------
    >>> GaussNewton(max_iterations=50)
    GaussNewton(inner_iterations=100, start='stages', tolerance=1e-06, max_iterations=50)
    """

    traits: ClassVar[Traits] = TRAITS
    inner_iterations: int = 100
    start: Start = "stages"
    tolerance: float = 1e-6
    max_iterations: int = 100

    def __post_init__(self) -> None:
        check_counts(inner_iterations=self.inner_iterations)
        check_options(self.start, self.tolerance, self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, in the dtype of the observations."""
        return complete_at_rank(
            partial(gauss_newton_steps, inner_iterations=self.inner_iterations),
            problem,
            run,
            start=self.start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def gauss_newton_steps(
    fit: ObservedFit, point: Point, memory: Memory, *, inner_iterations: int
) -> Iterator[State]:
    """Yield a point and those that Gauss-Newton leads to; end if no step decreases the loss."""
    point = packed(point, memory.get("point", unpacked(point)))
    residuals = fit.residuals(*point.factors())
    while True:
        gradient = riemannian_gradient(fit, point, residuals)
        loss = fit.loss(residuals)
        memory["point"] = unpacked(point)
        yield State(point.operator(), loss, gradient.norm())
        forcing = min(_FORCING, math.sqrt(math.sqrt(2 * loss / len(residuals))))
        step = tangent_least_squares(
            fit, point, residuals, gradient, forcing=forcing, max_iterations=inner_iterations
        )
        found = line_search(fit, point, residuals, gradient, step, 1.0)
        if found is None:
            return
        point, residuals = found


def tangent_least_squares(
    fit: ObservedFit,
    point: Point,
    residuals: Tensor,
    gradient: Tangent,
    *,
    forcing: float,
    max_iterations: int,
) -> Tangent:
    """Minimise the linearised loss over the tangent space, from zero, to a share of the gradient.

    References
    ----------
    CGLS: Bjorck (1996), Numerical methods for least squares problems, algorithm 7.4.1.
    """
    xi, direction = gradient.times(0.0), gradient.times(-1.0)
    square = first = gradient.dot(gradient)
    for _ in range(max_iterations):
        if square <= forcing**2 * first or square == 0:
            break
        change = fit.predict(*direction.factors(point))
        step = exact_step(fit, residuals, change)
        xi, residuals = xi.plus(direction, step), residuals + step * change
        descent = riemannian_gradient(fit, point, residuals).times(-1.0)
        square, previous = descent.dot(descent), square
        direction = descent.plus(direction, square / previous)
    return xi
