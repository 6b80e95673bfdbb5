"""Alternating least squares: rows and columns in turn, each an exact or nearly exact minimum."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem, convex_problem_of
from lowrank_opt.completion.loop.checkpoint import State, own_lines, packed, unpacked
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.randomness import normal_lines
from lowrank_opt.completion.model.standardize import standardize
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.escape import ways_out
from lowrank_opt.completion.solvers.held_out import root_mean_square_error
from lowrank_opt.completion.solvers.proof import Proof
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.errors import OptionError
from lowrank_opt.kernels.parts import row_problems
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut, over_lines, whole_lines
from lowrank_opt.operator import LowRankOperator

_CG_STEPS = 3
_PATIENCE = 2
_LEAST = 1e-14
_SWEEPS_BETWEEN = 4
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class ALS:
    r"""Alternating least squares with learned biases.

    Minimises :math:`\sum_k w_k (\mu + a_i + c_j + u_i^T v_j - y_k)^2
    + \sum_i (\lambda_i \|u_i\|^2 + \rho_i a_i^2) + \sum_j (\lambda_j \|v_j\|^2
    + \rho_j c_j^2)` with :math:`\lambda_i = \text{penalty}\; n_i^{\text{exponent}}` and
    :math:`\rho_i = \text{bias penalty}\; n_i^{\text{exponent}}` of the problem;
    :math:`\mu` is the weighted mean. With the exponent zero this is twice the objective of a
    `CompletionProblem`.

    Parameters
    ----------
    exponent : float
        In [0, 1]: 1 is the weighted penalty, 0 the plain one.
    method : {"exact", "cg"}
        Cholesky factorisation of each row's normal equations; or three steps of conjugate
        gradients from where the row is, which suits ranks above about 50.
    tolerance : float
        Stop when the objective falls by less than this share in a sweep.
    max_iterations : int
        Largest number of sweeps, passes over rows and columns.
    gap : float, optional
        As in `LBFGS`, with the exponent zero: CONVERGED means that it is proved. Not with
        nonnegative factors, whose problem is not convex.
    nonnegative : bool
        Factors are at least zero, exactly; biases are free. Rows are solved by coordinate descent
        in float64, to 1e-13 of their largest entry or 500 rounds, whatever the method.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    With validation entries it stops when their error has not improved for two sweeps, and returns
    the best one. A start's factors and column biases are taken over, columns of lower rank filled
    up at random; it may have fewer rows and columns. By default the start is random. The objective
    in the history never increases, up to rounding.

    References
    ----------
    Zhou et al. (2008), Large-scale parallel collaborative filtering for the Netflix prize,
    section 3; the conjugate gradient steps are those of Takacs, Pilaszy and Tikk (2011). Coordinate
    descent for nonnegative rows: Hsieh and Dhillon (2011), Fast coordinate descent methods with
    variable selection for non-negative matrix factorization, section 3.

    Examples
    --------
    >>> ALS(max_iterations=50).max_iterations
    50
    """

    traits: ClassVar[Traits] = Traits(
        sets=("rank",),
        penalty="needed",
        start=True,
        checkpoint=True,
        certificate=True,
        distributed=True,
        cut=True,
        cut_columns=True,
    )
    exponent: float = 0.0
    method: Literal["exact", "cg"] = "exact"
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gap: float | None = 1e-4
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_counts(max_iterations=self.max_iterations)
        check_amounts(exponent=self.exponent, tolerance=self.tolerance, gap=self.gap or 0.0)
        if self.exponent > 1:
            raise OptionError(f"exponent must be in [0, 1]; got exponent={self.exponent!r}")
        if self.method not in ("exact", "cg"):
            raise OptionError(f"method must be 'exact' or 'cg'; got method={self.method!r}")

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the factors of the last sweep, or of that with the smallest validation error."""
        fitted, held_out = run.split(problem.observations)
        model = _Model(fitted, problem, self, run.generator)
        if run.start is not None:
            model.start_from(run.start)
        convex = None
        if not (self.exponent or self.nonnegative):
            convex = convex_problem_of(problem, fitted)
        # Where rows are cut, the ways out of a point that is not optimal are not known.
        gap = None if held_out is not None or is_cut(fitted) else self.gap
        proof = Proof.of(convex, gap, problem.fixed_rank)
        sweeps = _Sweeps(model, _Settling(self.tolerance), held_out, proof)
        with run.reporting(self.max_iterations) as report:
            result = sweeps.run(self.max_iterations, run, report)
        return replace(result, problem=convex, proved=None if proof is None else proof.last)


class _Model:
    """Factors with the bias as a last column, and the half sweeps that improve them.

    In a unit in which the values are of size one: a power of two, so that it rounds nothing.
    """

    def __init__(
        self,
        observations: Observations,
        problem: CompletionProblem,
        solver: ALS,
        generator: torch.Generator | None,
    ) -> None:
        rank, rate = problem.fixed_rank, problem.bias_rate
        if rate == 0:
            raise OptionError(
                "bias_penalty must be positive, or rows with few entries have no unique solution; "
                "got bias_penalty=0.0"
            )
        self.dtype, self.rank, self.biased = observations.dtype, rank, rate is not None
        self.exact, self.nonnegative = solver.method == "exact", solver.nonnegative
        self.mean, deviation, _ = standardize(observations, centre=self.biased)
        self.unit = 2.0 ** round(math.log2(deviation))
        # Grams are summed in float64 whatever the data: the exact minimum keeps the descent.
        centred = observations.to(dtype=torch.float64)
        centred = centred.with_values((centred.values - self.mean) / self.unit)
        self.problems = row_problems(centred, torch.float64)
        counts = (observations.row_counts, observations.col_counts)
        penalty = problem.penalty / self.unit
        self.strengths = tuple(_strengths(c, penalty, solver.exponent) for c in counts)
        K = rank + int(self.biased)
        self.diagonal = centred.values.new_ones(K)
        self.diagonal[rank:] = (rate or 0.0) / penalty
        self.observations = observations
        self.sides = [centred.values.new_zeros(size, K) for size in map(len, counts)]
        start = normal_lines(*whole_lines(observations), generator, width=rank, like=centred.values)
        for x, part in zip(self.sides, start, strict=True):
            numbers = part.mul_(0.1).div_(rank**0.5)
            x[:, :rank] = numbers.abs_() if self.nonnegative else numbers

    def start_from(self, result: CompletionResult) -> None:
        """Take over as many leading factors as fit, balanced, and the biases."""
        operator = result.operator.to(dtype=torch.float64, device=self.diagonal.device)
        operator = operator * (1 / self.unit)
        U, scale, V = operator if operator.rank <= self.rank else operator.thin_svd()
        sizes = scale.abs() * U.norm(dim=0) * V.norm(dim=0)
        # A column of zeros on both sides would stay zero: those keep their random start.
        live = (sizes > _NEGLIGIBLE * sizes.max()).nonzero().squeeze(1)[: self.rank]
        k, root = len(live), scale[live].abs().sqrt()
        halves = (U[:, live] * root * scale[live].sign(), V[:, live] * root)
        for x, half, bias in zip(
            self.sides, halves, (result.bias.rows, result.bias.cols), strict=True
        ):
            known = len(half)
            x[:, k : self.rank] *= float(half.norm()) / max(k, 1) ** 0.5 if k else 1.0
            # Both signs of a column start as one: a factor and its mirror image are one factor.
            x[:known, :k] = half.abs() if self.nonnegative else half
            if self.biased:
                x[:known, self.rank] = bias / self.unit

    def leave(self, problem: ConvexProblem, best: float, enough: float) -> bool:
        """Go on from a point along the direction of the certificate, if there is a better one.

        Better is one from which a sweep leads below the best objective by a share of it.
        """
        kept, now = self.sides, self.result(CompletionStatus.CONVERGED, History())
        for target in ways_out(problem, now.operator, now.bias, self.rank):
            U, scale, V = (target * (1 / self.unit)).to(dtype=torch.float64).thin_svd()
            self.sides = [x.clone() for x in kept]
            for x, half in zip(self.sides, (U, V), strict=True):
                x[:, : self.rank] = 0.0
                x[:, : len(scale)] = half * scale.sqrt()
            if self.sweep() < best * (1 - enough):
                return True
        self.sides = kept
        return False

    def sweep(self) -> float:
        """Update rows, then columns; return the objective."""
        self._improve(0)
        return (self._improve(1) + self._penalties()) * self.unit**2

    def _improve(self, side: int) -> float:
        """Update rows (0) or columns (1); return the weighted sum of squared residuals."""
        x, problems, strengths = self.sides[side], self.problems[side], self.strengths[side]
        features, offsets = self._as_features(self.sides[1 - side])
        if self.nonnegative:
            settings = {"diagonal": self.diagonal, "strengths": strengths}
            return problems.solve_nonnegative(
                x, features, offsets, **settings, free=int(self.biased)
            )
        if self.exact:
            precision = self.diagonal.diag()
            return problems.solve(x, features, offsets, precision=precision, strengths=strengths)
        settings = {"diagonal": self.diagonal, "strengths": strengths}
        return problems.improve(x, features, offsets, **settings, steps=_CG_STEPS)

    def _penalties(self) -> float:
        """Return the sum of the penalty terms."""
        rows, cols = (
            s @ (x**2 @ self.diagonal) for x, s in zip(self.sides, self.strengths, strict=True)
        )
        rows, cols = (over_lines(self.observations, x, side) for x, side in ((rows, 0), (cols, 1)))
        return float(rows) + float(cols)

    def result(self, status: CompletionStatus, history: History) -> CompletionResult:
        """Return the factors and biases in the dtype of the observations."""
        r, root = self.rank, math.sqrt(self.unit)
        U, V = ((x[:, :r] * root).to(self.dtype) for x in self.sides)
        operator = LowRankOperator(U, U.new_ones(r), V)
        biases = (x[:, r] if self.biased else x.new_zeros(len(x)) for x in self.sides)
        a, c = ((x * self.unit).to(self.dtype) for x in biases)
        return CompletionResult(operator, AdditiveBias(self.mean, a, c), status, history)

    def _as_features(self, other: Tensor) -> tuple[Tensor, Tensor]:
        if not self.biased:
            return other, other.new_zeros(len(other))
        features = other.clone()
        features[:, -1] = 1.0
        return features, other[:, -1].clone()


@dataclass
class _Settling:
    tolerance: float
    first: int = 2

    def judge(self, objective: list[float], stale: bool) -> CompletionStatus | None:
        if not math.isfinite(objective[-1]):
            return CompletionStatus.NUMERICAL_TROUBLE
        if stale:
            return CompletionStatus.STOPPED_BY_VALIDATION
        if len(objective) < self.first:
            return None
        before, now = objective[-2:]
        return CompletionStatus.CONVERGED if before - now <= self.tolerance * before else None

    def tighten(self) -> bool:
        self.tolerance /= 10
        return self.tolerance > _LEAST

    def look_again(self, count: int) -> None:
        """Let some sweeps pass after the present ones: a single one proves next to nothing more."""
        self.first = count + _SWEEPS_BETWEEN


class _Sweeps:
    """The sweeps so far, and the best of them on entries held out."""

    def __init__(
        self,
        model: _Model,
        settling: _Settling,
        held_out: Observations | None,
        proof: Proof | None,
    ) -> None:
        self.model, self.settling = model, settling
        self.held_out, self.proof = held_out, proof
        self.history, self.started = History(), time.perf_counter()
        self.best: list[Tensor] | None = None
        self.best_rmse, self.best_sweep = math.inf, 0

    def run(self, most: int, run: Run, report: Callable[[Iteration], None]) -> CompletionResult:
        """Sweep until nothing is gained any more; return the best sides."""
        if run.checkpoint is not None:
            self._resume(run.checkpoint.restored(self.model.diagonal.device))
        try:
            status = self._iterate(most, run, report)
        except KeyboardInterrupt:
            # Sides are replaced or written row by row: each row is a minimum given the others.
            status = CompletionStatus.INTERRUPTED
        self.model.sides = self.model.sides if self.best is None else self.best
        return self.model.result(status, self.history)

    def _iterate(
        self, most: int, run: Run, report: Callable[[Iteration], None]
    ) -> CompletionStatus:
        patience = run.patience_or(_PATIENCE)
        for sweep in range(len(self.history), most):
            status = self._sweep(sweep, patience, report)
            if status is not None:
                return status
            if run.checkpoint is not None:
                run.checkpoint.offer(sweep + 1, self._state)
        return CompletionStatus.MAX_ITERATIONS

    def _sweep(
        self, sweep: int, patience: int, report: Callable[[Iteration], None]
    ) -> CompletionStatus | None:
        model, history, proof = self.model, self.history, self.proof
        objective, rmse = model.sweep(), math.nan
        now = partial(model.result, CompletionStatus.MAX_ITERATIONS, history)
        if self.held_out is not None:
            rmse = root_mean_square_error(now(), self.held_out)
            if rmse < self.best_rmse:
                self.best, self.best_rmse = [x.clone() for x in model.sides], rmse
                self.best_sweep = sweep
        line = Iteration(objective, math.nan, rmse, time.perf_counter() - self.started)
        history.append(line)
        report(line)
        stale = self.held_out is not None and sweep - self.best_sweep >= patience
        ended = self.settling.judge(history.objective, stale)
        if ended is CompletionStatus.CONVERGED and proof is not None:
            found = now()
            ended = proof.verdict(
                found.operator,
                found.bias,
                leave=partial(model.leave, proof.problem, objective),
                tighten=self.settling.tighten,
            )
            self.settling.look_again(len(history))
        return ended

    def _state(self) -> State:
        observations = self.model.observations
        cut = is_cut(observations, 0), is_cut(observations, 1)
        sides: list[list[State]] = [
            [own_lines(x) if here else x for x, here in zip(pair, cut, strict=True)] if pair else []
            for pair in (self.model.sides, self.best)
        ]
        return {
            "sides": sides,
            "settling": unpacked(self.settling),
            "proof": None if self.proof is None else self.proof.state(),
            "history": self.history.columns(),
            "best": [self.best_rmse, self.best_sweep],
        }

    def _resume(self, state: State) -> None:
        if state is None:
            return
        assert isinstance(state, dict), "as `_state` returned it"
        self.model.sides, best = state["sides"]
        self.best = best or None
        self.settling = packed(self.settling, state["settling"])
        if self.proof is not None:
            self.proof.resume(state["proof"])
        self.history = History(**state["history"])
        self.started -= self.history.seconds[-1]
        self.best_rmse, self.best_sweep = state["best"]


def _strengths(counts: Tensor, penalty: float, exponent: float) -> Tensor:
    """Return the penalty of each row; a row without entries is penalised like one with one."""
    return penalty * counts.clamp_min(1).double() ** exponent
