"""Gauss-Newton on the manifold of matrices of a fixed rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lowrank_opt.completion.model.checks import check_counts
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point, Tangent
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.rank_stages import Start, State, complete_at_rank
from lowrank_opt.completion.solvers.fixed_rank.riemannian import (
    exact_step,
    line_search,
    riemannian_gradient,
)

if TYPE_CHECKING:
    from lowrank_opt.completion.loop.progress import Progress
    from lowrank_opt.completion.results.result import CompletionResult
    from lowrank_opt.observations import Observations

# Share of the gradient that the inner iteration may leave far from a solution.
_FORCING = 0.1


def gauss_newton(
    observations: Observations,
    rank: int,
    *,
    inner_iterations: int = 100,
    start: Start = "stages",
    bias: Literal["additive"] | None = None,
    bias_penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    validation: float | Observations | None = None,
    patience: int = 20,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> CompletionResult:
    r"""Complete a matrix by Gauss-Newton steps at a fixed rank.

    Each step minimises :math:`\sum_k w_k ((W + \xi)_{i_k j_k} - v_k)^2` over tangent vectors
    :math:`\xi` by conjugate gradients for least squares, and takes the nearest matrix of the rank
    to :math:`W + \xi`, halving the step until the loss decreases enough. In tangent coordinates
    the conditioning is that of the sampling alone, whatever the singular values. The forcing terms
    fall like the root of the residual: on exact data convergence is superlinear, of order 3/2.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    rank : int
    inner_iterations : int
        Largest number of conjugate gradient steps in each least-squares problem. Ended early they
        also regularise: directions that no entry determines stay at zero.
    start, bias, bias_penalty, tolerance, max_iterations
        As in `riemannian`; an iteration is a Gauss-Newton step.
    validation, patience, generator, progress
        As in `riemannian`.

    Returns
    -------
    CompletionResult
        As in `riemannian`.

    Raises
    ------
    RankError, RadiusError, OptionError, ShapeError, ObservationError
        As in `riemannian`.

    References
    ----------
    Zilber and Nadler (2022), GNMF: a simple and efficient Gauss-Newton method for low rank matrix
    completion, equation 7, in the tangent coordinates of Luo, Huang, Li and Zhang (2024),
    Recursive importance sketching for rank constrained least squares. Forcing terms: Eisenstat and
    Walker (1996).

    Examples
    --------
    >>> from lowrank_opt import Observations
    >>> truth = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 5.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(5, 4) == 0, torch.nan))
    >>> gauss_newton(observed, 1).predict(3, 3)
    tensor(16.0000)
    """
    check_counts(inner_iterations=inner_iterations)
    return complete_at_rank(
        partial(gauss_newton_steps, inner_iterations=inner_iterations),
        observations,
        rank,
        start=start,
        bias=bias,
        bias_penalty=bias_penalty,
        tolerance=tolerance,
        max_iterations=max_iterations,
        validation=validation,
        patience=patience,
        generator=generator,
        progress=progress,
    )


def gauss_newton_steps(fit: ObservedFit, point: Point, *, inner_iterations: int) -> Iterator[State]:
    """Yield a point and those that Gauss-Newton leads to; end if no step decreases the loss."""
    residuals = fit.residuals(*point.factors())
    while True:
        gradient = riemannian_gradient(fit, point, residuals)
        loss = fit.loss(residuals)
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
