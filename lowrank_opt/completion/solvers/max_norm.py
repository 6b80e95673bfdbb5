"""Completion under a bound on the max-norm: rows of both factors inside a ball."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lowrank_opt.checks import check_radius
from lowrank_opt.completion.loop.checkpoint import State
from lowrank_opt.completion.model.bias import AdditiveBias, weighted_mean
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.randomness import normal
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.kernels import observed_entries
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import CompressedAxis, Observations
from lowrank_opt.operator import LowRankOperator

_NEWTON_STEPS, _CLOSE = 12, 1e-9


@dataclass(frozen=True)
class MaxNorm:
    r"""Factors whose rows are of bounded length.

    Minimises :math:`\tfrac12 \sum_k w_k (W_{ij} + \mu + a_i + b_j - v_k)^2
    + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)` over :math:`W = L R^T` with
    :math:`\|l_i\|^2 \le \text{radius}` and :math:`\|r_j\|^2 \le \text{radius}`, as many
    columns each as the rank. These are matrices of max-norm at most `radius`, and so
    :math:`|W_{ij}| \le \text{radius}`. In contrast to the nuclear norm the bound does not depend
    on how the entries are distributed. A rank of a few times the expected one has fewer local
    minima.

    Parameters
    ----------
    radius : float
        Positive.
    tolerance : float
        As in `LBFGS`.
    max_iterations : int

    Raises
    ------
    RadiusError, OptionError
        If an option is outside its domain.

    Notes
    -----
    Computed in float64. Factors come out as L and R with scale one, rows within
    :math:`\sqrt{\text{radius}}` to one unit of rounding of their dtype. There is no certificate:
    the support function of the max-norm ball is a semidefinite program, not a singular value.

    Alternates over the rows of L, the rows of R and the biases, each an exact minimum: a least
    squares problem in a ball has the solution :math:`(A_i + \nu_i I)^{-1} b_i`, with
    :math:`\nu_i \ge 0` the root of a decreasing function of one variable, found by Newton's method
    for all rows at once.

    References
    ----------
    N. Srebro, J. Rennie and T. Jaakkola, Maximum-margin matrix factorization (NIPS 2004), section
    3; J. Lee et al., Practical large-scale optimization for max-norm regularization (NIPS 2010).
    The multiplier: J. More and D. Sorensen, Computing a trust region step (1983), section 3.

    Examples
    --------
    >>> MaxNorm(radius=1.5)
    MaxNorm(radius=1.5, tolerance=1e-05, max_iterations=200)
    """

    traits: ClassVar[Traits] = Traits(sets=("rank",), checkpoint=True)
    radius: float
    tolerance: float = 1e-5
    max_iterations: int = 200

    def __post_init__(self) -> None:
        check_amounts(tolerance=self.tolerance)
        check_counts(max_iterations=self.max_iterations)
        check_radius(self.radius)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate."""
        fitted, held_out = run.split(problem.observations)
        rank, rate = problem.fixed_rank, problem.bias_rate
        solver = _MaxNorm(fitted, rank, self.radius, rate, run.generator)
        return iterate(
            solver,
            fitted,
            held_out,
            run,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


class _MaxNorm:
    def __init__(
        self,
        observations: Observations,
        rank: int,
        radius: float,
        bias_penalty: float | None,
        generator: torch.Generator | None,
    ) -> None:
        exact = observations.to(dtype=torch.float64)
        self.observations, self.dtype = exact, observations.dtype
        self.biased, self.ridge = bias_penalty is not None, bias_penalty or 0.0
        self.mean = weighted_mean(observations) if self.biased else 0.0
        # In units in which the rows of the factors are inside the unit ball.
        self.radius = radius
        self.values = (exact.values - self.mean) / radius
        w = torch.ones_like(exact.values) if exact.weights is None else exact.weights
        self.w = w / w.max()
        self.largest = float(w.max())
        self.axes = (exact.csr, exact.csc)
        self.indices = (exact.rows, exact.cols)
        self.biases = [w.new_zeros(size) for size in exact.shape]
        start = normal((sum(exact.shape), rank), generator, like=self.w)
        start /= torch.linalg.vector_norm(start, dim=1, keepdim=True)
        self.sides = list(start.split(exact.shape))
        self.multipliers = [x.new_zeros(x.shape) for x in self.biases]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterate:
        for side in (0, 1):
            self._improve(side)
        if self.biased:
            self._improve_biases()
        return self._iterate()

    def state(self) -> State:
        """Return what iterations change, for a `Checkpoint`."""
        return [self.sides, self.multipliers, self.biases]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        self.sides, self.multipliers, self.biases = state

    def _improve(self, side: int) -> None:
        """Minimise over the rows of one factor, each in the unit ball."""
        targets = self.values - self._bias_entries()
        axis, features = self.axes[side], self.sides[1 - side]
        problems = _row_problems(axis, targets, self.w)
        x = features.new_zeros(len(axis.pointers) - 1, features.shape[1])
        self.multipliers[side] = _solve_in_balls(
            problems, x, features, guess=self.multipliers[side], counts=axis.counts
        )
        self.sides[side] = x

    def _improve_biases(self) -> None:
        for side, index in enumerate(self.indices):
            x = self.biases[side]
            E = self.w * (self.values - self._bias_entries() - self._entries())
            ridge = self.ridge / self.largest
            slope = torch.zeros_like(x).index_add_(0, index, E) - ridge * x
            total = torch.zeros_like(x).index_add_(0, index, self.w) + ridge
            self.biases[side] = x + torch.where(total > 0, slope / total, 0.0)

    def _iterate(self) -> Iterate:
        E = self.values - self._bias_entries() - self._entries()
        squares = sum(float(x.square().sum()) for x in self.biases)
        objective = 0.5 * self.largest * float((self.w * E.square()).sum()) + (
            0.5 * self.ridge * squares
        )
        # One unit below, so that rounding to the dtype does not leave the ball.
        size = self.radius**0.5 * (1 - torch.finfo(self.dtype).eps)
        left, right = (size * x for x in self.sides)
        operator = LowRankOperator(left, left.new_ones(left.shape[1]), right)
        bias = AdditiveBias(self.mean, *(self.radius * x for x in self.biases))
        return Iterate(
            operator.to(dtype=self.dtype), bias.to(dtype=self.dtype), objective * self.radius**2
        )

    def _entries(self) -> Tensor:
        left, right = self.sides
        op = LowRankOperator(left, left.new_ones(left.shape[1]), right)
        return observed_entries(op, self.observations)

    def _bias_entries(self) -> Tensor:
        (a, b), (rows, cols) = self.biases, self.indices
        return a[rows] + b[cols]


def _row_problems(axis: CompressedAxis, targets: Tensor, w: Tensor) -> RowProblems:
    return RowProblems(axis, targets[axis.order], w[axis.order])


def _solve_in_balls(
    problems: RowProblems, x: Tensor, features: Tensor, *, guess: Tensor, counts: Tensor
) -> Tensor:
    r"""Set each row of x to its minimiser in the unit ball; return the multipliers.

    Newton's method for :math:`1 / \|x_i(\nu)\| = 1`, whose left side is concave and nearly linear:
    from any start the second iterate is below the root, and the others increase towards it.
    """
    identity = torch.eye(features.shape[1], dtype=x.dtype, device=x.device)
    offsets = features.new_zeros(len(features))
    homogeneous = replace(problems, values=torch.zeros_like(problems.values))
    # Rows with fewer entries than columns have singular systems: nearly the shortest solution.
    least = 1e-10 * counts.clamp_min(1).double()
    nu, y = torch.maximum(guess, least), torch.zeros_like(x)
    for _ in range(_NEWTON_STEPS):
        problems.solve(x, features, offsets, precision=identity, strengths=nu)
        sizes = torch.linalg.vector_norm(x, dim=1)
        if bool((((sizes - 1).abs() < _CLOSE) | ((sizes < 1) & (nu == least))).all()):
            break
        homogeneous.solve(y, features, offsets, precision=identity, strengths=nu, pull=x)
        # x^T (A + nu I)^-1 x, minus half the derivative of the squared length.
        slopes = (x * y).sum(1).clamp_min(1e-300)
        nu = torch.maximum(nu + sizes.square() / slopes * (sizes - 1), least)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1.0)
    return torch.where(nu > least, nu, 0.0)
