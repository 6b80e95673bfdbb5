"""Conjugate gradients on the manifold of matrices of a fixed rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_opt.completion.loop.checkpoint import packed, unpacked
from lowrank_opt.completion.loop.remembered import Memory
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
from lowrank_opt.completion.solvers.traits import Traits

# Cosine of the angle to the steepest descent below which a direction is given up.
_SMALLEST_COSINE = 0.1
_SUFFICIENT = 1e-4
_HALVINGS = 30


@dataclass(frozen=True)
class Riemannian:
    r"""Riemannian conjugate gradients at a fixed rank.

    Minimises :math:`\tfrac12 \sum_k w_k (W_{i_k j_k} - v_k)^2` over the matrices of rank `rank`,
    an embedded manifold, with Polak-Ribiere directions, a step that is exact for the linearised
    problem, then halved until the loss falls enough, and the truncated SVD as the retraction. A
    step costs O(nnz rank + (m + n) rank^2); no m x n matrix is formed.

    Parameters
    ----------
    start : {"stages", "spectral"}
        From those singular triples of the observed entries that stand out of sampling noise, the
        rank growing by what stands out of the residual; or from all `rank` triples at once. Only
        the first finds the small components of ill-conditioned matrices.
    tolerance : float
        Stop when the loss fell by less than this share over the last 10 iterations, or when
        residuals are 1e-4 times that, or 16 units of rounding, relative to the spread of values.
    max_iterations : int
        Over all stages.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Biases are fitted first, alone, and subtracted: the matrix completes what is left. Computed in
    float64, on the device of the observations. Rows and columns without entries are zero; rows with
    fewer entries than the rank are not determined by the data: they get the fit that the iteration
    reaches. With stages, validation entries also choose the rank.

    References
    ----------
    Vandereycken (2013), Low-rank matrix completion by Riemannian optimization, algorithm 1.

    Examples
    --------
    >>> Riemannian(max_iterations=50)
    Riemannian(start='stages', tolerance=1e-06, max_iterations=50)
    """

    traits: ClassVar[Traits] = TRAITS
    start: Start = "stages"
    tolerance: float = 1e-6
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_options(self.start, self.tolerance, self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, in the dtype of the observations."""
        return complete_at_rank(
            conjugate_gradients,
            problem,
            run,
            start=self.start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def conjugate_gradients(fit: ObservedFit, point: Point, memory: Memory) -> Iterator[State]:
    """Yield a point and those that conjugate gradients lead to; end if no step decreases."""
    point = packed(point, memory.get("point", unpacked(point)))
    residuals = fit.residuals(*point.factors())
    gradient = riemannian_gradient(fit, point, residuals)
    direction = gradient.times(-1.0)
    direction = packed(direction, memory.get("direction", unpacked(direction)))
    while True:
        memory |= {"point": unpacked(point), "direction": unpacked(direction)}
        yield State(point.operator(), fit.loss(residuals), gradient.norm())
        found = line_search(fit, point, residuals, gradient, direction)
        if found is None:
            return
        new, residuals = found
        new_gradient = riemannian_gradient(fit, new, residuals)
        change = new_gradient.plus(gradient.transport(point, new), -1.0)
        beta = max(0.0, new_gradient.dot(change) / gradient.dot(gradient))
        direction = new_gradient.times(-1.0).plus(direction.transport(point, new), beta)
        if -direction.dot(new_gradient) < _SMALLEST_COSINE * direction.norm() * new_gradient.norm():
            direction = new_gradient.times(-1.0)
        point, gradient = new, new_gradient


def riemannian_gradient(fit: ObservedFit, point: Point, residuals: Tensor) -> Tangent:
    """Return the tangent vector of steepest ascent."""
    return point.project(*fit.products(fit.weigh(residuals), point.U, point.V))


def line_search(
    fit: ObservedFit,
    point: Point,
    residuals: Tensor,
    gradient: Tangent,
    direction: Tangent,
    step: float | None = None,
) -> tuple[Point, Tensor] | None:
    """Halve a step until the loss decreases enough; return the new point and its residuals.

    Parameters
    ----------
    step : float, optional
        The first one to try; by default the minimiser of the loss along the tangent.

    References
    ----------
    Vandereycken (2013), algorithm 1, steps 6 and 7.
    """
    slope, loss = direction.dot(gradient), fit.loss(residuals)
    if not slope < 0:
        return None
    t = exact_step(fit, residuals, fit.predict(*direction.factors(point))) if step is None else step
    for _ in range(_HALVINGS):
        new = point.move(direction, t)
        moved = fit.residuals(*new.factors())
        if fit.loss(moved) <= loss + _SUFFICIENT * t * slope:
            return new, moved
        t /= 2
    return None


def exact_step(fit: ObservedFit, residuals: Tensor, change: Tensor) -> float:
    """Return the t that minimises the loss of ``residuals + t change``; one where none moves."""
    weighed = fit.weigh(change)
    curvature = float(torch.dot(weighed, change))
    return -float(torch.dot(weighed, residuals)) / curvature if curvature > 0 else 1.0
