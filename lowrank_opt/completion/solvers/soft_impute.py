"""Soft-impute by alternating least squares: the nuclear-norm penalty, with warm starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from lowrank_opt.checks import check_rank
from lowrank_opt.completion.certificates.convex_problem import ConvexProblem, convex_problem_of
from lowrank_opt.completion.loop.checkpoint import State, packed, unpacked
from lowrank_opt.completion.model.bias import AdditiveBias, weighted_mean
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.randomness import go_on, normal, stream
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.escape import ways_out
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.errors import ShapeError
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import ModelParts, Needed
from lowrank_opt.linalg import orthonormal_columns
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True)
class SoftImpute:
    r"""Soft-impute by alternating least squares: a penalty on the nuclear norm, with warm starts.

    Minimises :math:`\tfrac12 \sum_k w_k (W_{ij} + \mu + a_i + b_j - v_k)^2 + \lambda \|W\|_*
    + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)`, convex, over matrices of bounded rank: the
    convex optimum itself, if that is not of larger rank. Each iteration fills the entries that are
    not observed with their present values (weights, divided by the largest, mix both), solves one
    ridge regression for the columns and one for the rows, each in closed form for all of them at
    once, and minimises over the biases of the rows, then of the columns.

    Parameters
    ----------
    tolerance : float
        As in `LBFGS`.
    max_iterations : int
    gap : float, optional
        As in `LBFGS`: CONVERGED means that it is proved.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Computed in float64. From a penalty as large as the largest singular value of the centred
    entries on, W = 0. Results are soft-thresholded, so that their rank is that of the solution; the
    objective never increases; `CompletionResult.certificate` bounds the distance to the convex
    optimum, whatever the rank, with a positive bias penalty over the biases too. It goes on from a
    start, say at a larger penalty: a path of penalties costs a few iterations a point.

    References
    ----------
    T. Hastie, R. Mazumder, J. D. Lee and R. Zadeh, Matrix completion and low-rank SVD via fast
    alternating least squares (JMLR 16, 2015), algorithm 3.1; weights as in section 5 of
    N. Srebro and T. Jaakkola, Weighted low-rank approximations (ICML 2003).

    Examples
    --------
    >>> SoftImpute(tolerance=1e-8)
    SoftImpute(tolerance=1e-08, max_iterations=1000, gap=0.0001)
    """

    traits: ClassVar[Traits] = Traits(
        sets=("rank",), penalty="needed", start=True, checkpoint=True, certificate=True
    )
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gap: float | None = 1e-4

    def __post_init__(self) -> None:
        check_amounts(tolerance=self.tolerance, gap=self.gap or 0.0)
        check_counts(max_iterations=self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate.

        Raises
        ------
        RankError
            If the rank exceeds the sides of the matrix.
        ShapeError
            If the start is of another shape.
        """
        _check(problem, run.start)
        fitted, held_out = run.split(problem.observations)
        solver, convex = _SoftImpute(fitted, problem, run), convex_problem_of(problem, fitted)
        return iterate(
            solver,
            fitted,
            held_out,
            run,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            problem=convex,
            gap=self.gap,
            rank=problem.fixed_rank,
            leave=None if convex is None else partial(solver.leave, convex),
        )


@dataclass(eq=False)
class _Factors:
    """``W = U D^2 V^T``; U and V have orthonormal columns, or V is zero at the start."""

    U: Tensor
    D: Tensor
    V: Tensor

    def other_side(self) -> _Factors:
        return _Factors(self.V, self.D, self.U)


class _SoftImpute:
    def __init__(self, observations: Observations, problem: CompletionProblem, run: Run) -> None:
        exact, bias_penalty = observations.to(dtype=torch.float64), problem.bias_rate
        self.dtype, self.bias_penalty = observations.dtype, bias_penalty
        self.mean = 0.0 if bias_penalty is None else weighted_mean(observations)
        self.backend = backend_of(exact.device)
        w = torch.ones_like(exact.values) if exact.weights is None else exact.weights
        # The filled-in matrix majorises the loss for weights of at most one.
        self.largest = float(w.max())
        self.w, self.penalty = w / self.largest, problem.penalty / self.largest
        self.ridge = (bias_penalty or 0.0) / self.largest
        self.entries = exact.with_values(exact.values - self.mean)
        totals = (
            self.w.new_zeros(size).index_add_(0, index, self.w)
            for index, size in zip((exact.rows, exact.cols), exact.shape, strict=True)
        )
        self.totals = tuple(x + self.ridge for x in totals)
        self.biases = [w.new_zeros(size) for size in exact.shape]
        self.rank, self.generator = problem.fixed_rank, run.generator
        self.factors = self._start(run.start)

        self.begun = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterate:
        """Return the start, then what each further iteration makes of it."""
        if self.begun:
            self.factors = self._improve_right(self.factors, flipped=False)
            other = self._improve_right(self.factors.other_side(), flipped=True)
            self.factors = other.other_side()
            self._improve_biases()
        self.begun = True
        return self._thresholded()

    def state(self) -> State:
        """Return what iterations change, for a `Checkpoint`."""
        return [unpacked(self.factors), self.biases, stream(self.generator)]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        factors, self.biases, place = state
        self.factors, self.begun = packed(self.factors, factors), True
        go_on(self.generator, place)

    def leave(self, problem: ConvexProblem, settled: Iterate, enough: float) -> bool:
        """Go on from a point along the direction of the certificate, if there is a better one."""
        kept = self.factors
        for target in ways_out(problem, settled.operator, settled.bias, self.rank):
            self.factors = self._from_operator(target)
            self.factors = self._improve_right(self.factors, flipped=False)
            if self._thresholded().objective < settled.objective * (1 - enough):
                return True
        self.factors = kept
        return False

    def _start(self, start: CompletionResult | None) -> _Factors:
        if start is None:
            U, D, V = self._blank()
            return _Factors(orthonormal_columns(U, self.rank), D, V)
        if self.bias_penalty is not None:
            shift = start.bias.mean - self.mean
            known = start.bias.to(dtype=torch.float64, device=self.w.device)
            self.biases = [known.rows + shift, known.cols.clone()]
        return self._from_operator(start.operator)

    def _from_operator(self, operator: LowRankOperator) -> _Factors:
        """Return the factors of a matrix, filled up with random columns that count nothing yet."""
        (U, D, V), rank = self._blank(), self.rank
        left, sigma, right = operator.to(dtype=torch.float64, device=U.device).thin_svd()
        k = min(rank, int((sigma > 1e-12 * sigma[:1]).sum()))
        U[:, :k], V[:, :k], D[:k] = left[:, :k], right[:, :k], sigma[:k].sqrt()
        if k:
            D[k:] = D[k - 1]
        # The sign of a column is free in a QR factorization, but not beside a given V.
        Q = orthonormal_columns(U, rank)
        return _Factors(Q * torch.where((Q * U).sum(0) < 0, -1.0, 1.0), D, V)

    def _blank(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return random columns of U, not orthonormal yet, the D of a start, and a V of zero."""
        m, n = self.entries.shape
        U = normal((m, self.rank), self.generator, like=self.w)
        size = float(torch.linalg.vector_norm(self.w * self.entries.values)) ** 0.5 or 1.0
        return U, U.new_full((self.rank,), size), U.new_zeros(n, self.rank)

    def _residuals(self, factors: _Factors) -> Tensor:
        """Return weighted values minus predictions, the entries of a sparse E."""
        model = ModelParts(factors.U * factors.D.square(), factors.V, *self.biases)
        return self.w * (self.entries.values - self.backend.entries(model, self.entries))

    def _improve_right(self, factors: _Factors, *, flipped: bool) -> _Factors:
        """Fill in, regress on the left factor, and diagonalise; algorithm 3.1, steps 2 and 3."""
        U, D, V = factors.U, factors.D, factors.V
        E = self._residuals(factors.other_side() if flipped else factors)
        filled = self._times(E, U, flipped=flipped) + V * D.square()
        B = filled * (D / (D.square() + self.penalty))
        left, squares, Rh = torch.linalg.svd(B * D, full_matrices=False)
        return _Factors(U @ Rh.mT, squares.sqrt(), left)

    def _times(self, E: Tensor, U: Tensor, *, flipped: bool) -> Tensor:
        """Return ``E^T U``, or ``E U`` if flipped."""
        m, n = self.entries.shape
        other = U.new_zeros(m if flipped else n, U.shape[1])
        model = ModelParts(other, U) if flipped else ModelParts(U, other)
        needed = Needed(left=flipped, right=not flipped)
        gradient = self.backend.entries_gradient(model, self.entries, E, needed)
        product = gradient.left if flipped else gradient.right
        assert product is not None, "asked for"
        return product

    def _improve_biases(self) -> None:
        if self.bias_penalty is None:
            return
        for side, index in enumerate((self.entries.rows, self.entries.cols)):
            E = self._residuals(self.factors)
            x, total = self.biases[side], self.totals[side]
            slope = torch.zeros_like(x).index_add_(0, index, E) - self.ridge * x
            self.biases[side] = x + torch.where(total > 0, slope / total, 0.0)

    def _thresholded(self) -> Iterate:
        """Return the best matrix with the present columns; algorithm 3.1, step 6."""
        U, D, V = self.factors.U, self.factors.D, self.factors.V
        M = self._times(self._residuals(self.factors), V, flipped=True) + U * D.square()
        P, sigma, Rh = torch.linalg.svd(M, full_matrices=False)
        sigma = (sigma - self.penalty).clamp_min(0.0)
        k = max(1, int((sigma > 0).sum()))
        best = _Factors(P[:, :k], sigma[:k].sqrt(), V @ Rh.mT[:, :k])
        objective = self._objective(best)
        operator = LowRankOperator(best.U, sigma[:k], best.V).to(dtype=self.dtype)
        bias = AdditiveBias(self.mean, *self.biases).to(dtype=self.dtype)
        return Iterate(operator, bias, objective * self.largest)

    def _objective(self, factors: _Factors) -> float:
        E = self._residuals(factors)
        squares = torch.where(self.w > 0, E.square() / self.w, 0.0).sum()
        ridge = sum(float(x.square().sum()) for x in self.biases)
        norm = float(factors.D.square().sum())
        return 0.5 * float(squares) + self.penalty * norm + 0.5 * self.ridge * ridge


def _check(problem: CompletionProblem, start: CompletionResult | None) -> None:
    check_rank(problem.fixed_rank, problem.shape)
    if start is not None and start.shape != problem.shape:
        raise ShapeError(f"the start must be of shape {problem.shape}; got {start.shape}")
