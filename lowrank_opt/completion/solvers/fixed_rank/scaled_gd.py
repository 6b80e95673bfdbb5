"""Gradient descent on two factors, each preconditioned by the Gram matrix of the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.loop.remembered import Memory
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.rank_stages import (
    TRAITS,
    Start,
    State,
    check_options,
    complete_at_rank,
)
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.operator import LowRankOperator

# Share of the exact step that is taken.
_RELAXED = 0.9


@dataclass(frozen=True)
class ScaledGD:
    r"""Scaled gradient descent at a fixed rank.

    Steps :math:`L \leftarrow L - \eta\, S R (R^T R)^{-1}`, :math:`R \leftarrow R - \eta\, S^T L
    (L^T L)^{-1}`, both from the old pair, where the sparse S holds the weighted residuals of
    :math:`L R^T`. The loss is a polynomial of degree four along such a step: :math:`\eta` is nine
    tenths of its first minimiser, as always the whole of it makes steps zigzag. With stages the
    number of iterations hardly grows with the condition number; a spectral start of full rank
    misses components that are smaller than the noise of sampling.

    Parameters
    ----------
    start, tolerance, max_iterations
        As in `Riemannian`.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    References
    ----------
    Tong, Ma and Chi (2021), Accelerating ill-conditioned low-rank matrix estimation via scaled
    gradient descent, equation 3, without the projection of its section 2.3. Shortened steps:
    Raydan and Svaiter (2002), Relaxed steepest descent and Cauchy-Barzilai-Borwein method.

    Examples
    --------
    >>> ScaledGD(max_iterations=50)
    ScaledGD(start='stages', tolerance=1e-06, max_iterations=50)
    """

    traits: ClassVar[Traits] = TRAITS
    start: Start = "stages"
    tolerance: float = 1e-6
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        check_options(self.start, self.tolerance, self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, in the dtype of the observations."""
        return complete_at_rank(
            scaled_gradient_steps,
            problem,
            run,
            start=self.start,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def scaled_gradient_steps(fit: ObservedFit, point: Point, memory: Memory) -> Iterator[State]:
    """Yield a point and those that scaled gradient descent leads to."""
    L, R = memory.get("factors", [point.U * point.s.sqrt(), point.V * point.s.sqrt()])
    while True:
        memory["factors"] = [L, R]
        residuals = fit.residuals(L, R)
        along_L, along_R = fit.products(fit.weigh(residuals), L, R)
        dL, dR = -_divide(along_L, R.mT @ R), -_divide(along_R, L.mT @ L)
        slope = float(torch.sum(along_L * dL) + torch.sum(along_R * dR))
        matrix = LowRankOperator(L, L.new_ones(L.shape[1]), R)
        yield State(matrix, fit.loss(residuals), math.sqrt(max(0.0, -slope)))
        # W(t) = L R^T + t (dL R^T + L dR^T) + t^2 dL dR^T
        linear = fit.predict(torch.cat((dL, L), dim=1), torch.cat((R, dR), dim=1))
        step = _RELAXED * first_minimiser(fit, residuals, linear, fit.predict(dL, dR))
        if not step > 0:
            return
        L, R = L + step * dL, R + step * dR


def first_minimiser(fit: ObservedFit, constant: Tensor, linear: Tensor, square: Tensor) -> float:
    """Return the smallest t > 0 where the slope of the loss of c + t l + t^2 s is zero, or 0."""

    def dot(x: Tensor, y: Tensor) -> float:
        return float(torch.dot(fit.weigh(x), y))

    cubic = [
        2 * dot(square, square),
        3 * dot(linear, square),
        dot(linear, linear) + 2 * dot(constant, square),
        dot(constant, linear),
    ]
    if not cubic[-1] < 0:
        return 0.0
    roots = np.roots(cubic)
    # A double root may come as a pair with a tiny imaginary part.
    real = roots.real[(np.abs(roots.imag) <= 1e-8 * np.abs(roots)) & (roots.real > 0)]
    return float(real.min()) if len(real) else 0.0


def _divide(x: Tensor, gram: Tensor) -> Tensor:
    """Return ``x @ inv(gram)``; directions that are rounding in a Gram matrix are damped."""
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    ridge = len(gram) * eps * float(gram.trace()) + tiny
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), x, left=False)
