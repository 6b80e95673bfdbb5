"""Training the free parameters of a parameterization: by L-BFGS, or by any torch optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem, convex_problem_of
from lowrank_opt.completion.loop.checkpoint import Checkpoint, State, own_lines
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.loop.stopping import Stopping
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.objective import Objective
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.escape import escape, move_to_spectral_start, polish
from lowrank_opt.completion.solvers.minimizers import (
    MakeOptimizer,
    Minimizer,
    OptimizerSteps,
    QuasiNewtonSteps,
)
from lowrank_opt.completion.solvers.proof import Proof
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut

# From another start: enough to be better than a bad minimum, if it is one.
_STEPS_ELSEWHERE = 20
# Iterations without settling after which the certificate is asked for nevertheless.
_UNSEEN = 200

_TRAITS = Traits(
    sets=("parameterization",),
    losses="any",
    penalty="yes",
    checkpoint=True,
    certificate=True,
    distributed=True,
    cut=True,
    cut_columns=True,
)


def adam(variables: Sequence[Tensor]) -> Optimizer:
    """Return Adam with step 0.01, which takes gradients below 1e-3 of an entry's for what they are.

    With its usual 1e-8 it divides rounding by itself: where a gradient begins at zero, as that of
    biases that are fitted, a sum in another order, over other processes, takes another path.
    """
    return Adam(variables, lr=0.01, eps=1e-3)


@dataclass(frozen=True)
class LBFGS:
    """Train a parameterization by L-BFGS with a strong-Wolfe line search.

    W stays in the feasible set at every iterate, and is never formed. For smooth losses.

    Parameters
    ----------
    tolerance : float
        Stop when the objective fell by less than this share over the last 10 iterations, or when
        residuals are 1e-4 times that, or 16 units of rounding, relative to the spread of values.
    max_iterations : int
    gap : float, optional
        Over a convex set, and with a penalty on two free factors, under the squared loss: once the
        iteration has settled, the certificate is asked for. A larger gap than this, relative to the
        objective, and the iteration goes on, out of where it is along the direction of the
        certificate (`escape`), or with a smaller tolerance; where it crawls, and after every 200
        iterations that left most of the gap, the optimum is looked for in W itself (`polish`). The
        parameters are then those of the point found. CONVERGED then means that the gap is
        proved; RANK_BINDS, that the iterate is stationary, that going on did not close the gap, and
        that a larger rank gains at most ``proved.price_of_rank``: a spectral start was tried, but
        another matrix of this rank may still be better; GAP_OPEN, neither. Nearly exact fits count
        relative to a hundredth of the loss of predicting the mean. None for the tolerance alone.
        With validation entries those decide.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), algorithm 7.5.

    Examples
    --------
    >>> LBFGS(max_iterations=100)
    LBFGS(tolerance=1e-05, max_iterations=100, gap=0.0001)
    """

    traits: ClassVar[Traits] = _TRAITS
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gap: float | None = 1e-4

    def __post_init__(self) -> None:
        check_amounts(tolerance=self.tolerance, gap=self.gap or 0.0)
        check_counts(max_iterations=self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, detached; see `complete`."""
        return _train(problem, run, QuasiNewtonSteps, self)


@dataclass(frozen=True)
class FirstOrder:
    """Train a parameterization by full-batch steps of a torch optimizer.

    Adam with step 0.01 by default. For losses that are not smooth, such as the absolute one.

    Parameters
    ----------
    optimizer : callable
        From a list of tensors to a `torch.optim.Optimizer`. It sees the objective in a unit in
        which predicting the mean costs one for each entry.
    tolerance, max_iterations, gap
        As in `LBFGS`.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Examples
    --------
    >>> from functools import partial
    >>> FirstOrder(partial(torch.optim.SGD, lr=1e-3, momentum=0.9)).max_iterations
    1000
    """

    traits: ClassVar[Traits] = _TRAITS
    optimizer: MakeOptimizer = adam
    tolerance: float = 1e-5
    max_iterations: int = 1000
    gap: float | None = 1e-4

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise OptionError(
                "optimizer must map a list of tensors to a torch.optim.Optimizer; got "
                f"{self.optimizer!r}: leave it out for Adam"
            )
        check_amounts(tolerance=self.tolerance, gap=self.gap or 0.0)
        check_counts(max_iterations=self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the best iterate, detached; see `complete`."""

        def steps(objective: Objective) -> Minimizer:
            return OptimizerSteps(objective, self.optimizer)

        return _train(problem, run, steps, self)


def _train(
    problem: CompletionProblem,
    run: Run,
    make: Callable[[Objective], Minimizer],
    solver: LBFGS | FirstOrder,
) -> CompletionResult:
    fitted, held_out = run.split(problem.observations)
    objective = Objective(problem, fitted)
    patience, most = run.patience_or(), solver.max_iterations
    stopping = Stopping(fitted.dtype, tolerance=solver.tolerance, patience=patience)
    convex = convex_problem_of(problem, fitted)
    # Where rows are cut the tolerance decides: certificates are asked for, not gone on from.
    tolerance_decides = convex is None or held_out is not None or is_cut(fitted)
    proof = None if tolerance_decides else Proof.of(convex, solver.gap)
    fit = _Fit(objective, make(objective), stopping, held_out, run.checkpoint, proof)
    with run.reporting(most) as report:
        status = fit.run(most, report)
    return CompletionResult(
        objective.operator(),
        objective.bias(),
        status,
        fit.history,
        problem=convex,
        link=objective.link(),
        proved=None if proof is None else proof.last,
    )


class _Fit:
    """The iteration: evaluate, take note, stop or advance."""

    def __init__(
        self,
        objective: Objective,
        minimizer: Minimizer,
        stopping: Stopping,
        held_out: Observations | None,
        checkpoint: Checkpoint | None,
        proof: Proof | None,
    ) -> None:
        self.objective, self.minimizer, self.stopping = objective, minimizer, stopping
        self.held_out, self.checkpoint, self.proof = held_out, checkpoint, proof
        self.history, self.best = History(), self._copy()
        self.start, self.asked = time.perf_counter(), 0
        device = objective.observations.device
        state = None if checkpoint is None else checkpoint.restored(device)
        if state is not None:
            self._resume(state)

    def run(self, max_iterations: int, report: Callable[[Iteration], None]) -> CompletionStatus:
        """Iterate, and leave the variables at the best iterate, whatever happens."""
        try:
            return self._iterate(max_iterations, report)
        except KeyboardInterrupt:
            return CompletionStatus.INTERRUPTED
        finally:
            self._restore_best()

    def _iterate(
        self, max_iterations: int, report: Callable[[Iteration], None]
    ) -> CompletionStatus:
        for _ in range(len(self.history), max_iterations):
            self._leave_checkpoint()
            status = self._look(report) or self._advance()
            if status is not None:
                return status
        return self._look(report) or CompletionStatus.MAX_ITERATIONS

    def _look(self, report: Callable[[Iteration], None]) -> CompletionStatus | None:
        value, gradient_norm = self.minimizer.evaluate()
        if not (math.isfinite(value) and math.isfinite(gradient_norm)):
            return CompletionStatus.NUMERICAL_TROUBLE
        rmse = math.nan if self.held_out is None else self.objective.rmse(self.held_out)
        unit, seconds = self.objective.unit, time.perf_counter() - self.start
        iteration = Iteration(value * unit, gradient_norm * unit, rmse, seconds)
        self.history.append(iteration)
        report(iteration)
        status = self.stopping.judge(value, rmse)
        if self.stopping.improved:
            self.best = self._copy()
        if status is None and len(self.history) >= self.asked + _UNSEEN:
            return self._glance()
        return self._proved() if status is CompletionStatus.CONVERGED else status

    def _glance(self) -> CompletionStatus | None:
        """Ask for the proof although nothing has settled; where descent crawls, go elsewhere."""
        proof, objective, values = self.proof, self.objective, self.history.objective
        self.asked = len(values)
        if proof is None:
            return None
        if proof.glance(objective.operator(), objective.bias()):
            self.best = self._copy()
            return CompletionStatus.CONVERGED
        slow = proof.is_slow(values[-_UNSEEN] - values[-1])
        if slow and self._polished(proof, crawls=True):
            self.stopping.look_again()
            self.minimizer.restart()
        return None

    def _proved(self) -> CompletionStatus | None:
        """Return whether the settled iterate is the optimum, or None to go on from elsewhere."""
        proof, objective = self.proof, self.objective
        self.asked = len(self.history)
        self._restore_best()
        if proof is None:
            return CompletionStatus.CONVERGED
        status = proof.verdict(
            objective.operator(),
            objective.bias(),
            leave=self._leave,
            tighten=self.stopping.tighten,
        )
        if status is None:
            self.stopping.look_again()
            self.minimizer.restart()
        return status

    def _leave(self, enough: float) -> bool:
        """Go to a better point elsewhere; return whether there is one."""
        proof = self.proof
        assert proof is not None, "asked for by it"
        crawls = proof.crawls
        if crawls and self._polished(proof, crawls=True):
            return True
        if escape(self.objective, proof.problem, enough):
            return True
        if proof.rank_binds and proof.restarts == 0:
            proof.restarts += 1
            if self._begins_anew(proof.problem, enough):
                return True
        return not crawls and self._polished(proof, crawls=False)

    def _polished(self, proof: Proof, *, crawls: bool) -> bool:
        if not proof.may_polish(crawls=crawls):
            return False
        proof.polishes += 1
        return polish(self.objective, proof.problem, proof.gap, effort=proof.polishes)

    def _begins_anew(self, problem: ConvexProblem, enough: float) -> bool:
        """Take some steps from a spectral start; return whether they lead to a better point."""
        before, kept = self.minimizer.evaluate().value, self._copy()
        if move_to_spectral_start(self.objective, problem):
            self.minimizer.restart()
            for _ in range(_STEPS_ELSEWHERE):
                value, _ = self.minimizer.evaluate()
                if value < before * (1 - enough):
                    return True
                if not (math.isfinite(value) and self.minimizer.advance()):
                    break
        self._put(kept)
        return False

    def _advance(self) -> CompletionStatus | None:
        if self.minimizer.advance():
            return None
        # A line search can fail because of an old curvature estimate: try once along the gradient.
        self.minimizer.restart()
        if self.minimizer.advance():
            return None
        if self.minimizer.met_not_finite:
            return CompletionStatus.NUMERICAL_TROUBLE
        return CompletionStatus.STALLED if self.proof is None else self._proved()

    def _leave_checkpoint(self) -> None:
        iteration = len(self.history)
        if self.checkpoint is not None and iteration > 0:
            self.checkpoint.offer(iteration, self._state)

    def _state(self) -> State:
        return {
            "variables": self._kept(self._copy()),
            "minimizer": self.minimizer.state(),
            "stopping": self.stopping.state(),
            "asked": self.asked,
            "history": self.history.columns(),
            "best": self._kept(self.best),
            "proof": None if self.proof is None else self.proof.state(),
        }

    @torch.no_grad()
    def _resume(self, state: State) -> None:
        assert isinstance(state, dict), "as `_state` returned it"
        for x, kept in zip(self.objective.variables, state["variables"], strict=True):
            x.copy_(kept)
        self.minimizer.resume(state["minimizer"])
        self.stopping.resume(state["stopping"])
        self.history, self.best = History(**state["history"]), state["best"]
        if self.proof is not None:
            self.proof.resume(state["proof"])
        self.asked = state["asked"]
        self.start -= self.history.seconds[-1]

    def _kept(self, variables: list[Tensor]) -> list[State]:
        pairs = zip(variables, self.objective.of_own_lines, strict=True)
        return [own_lines(x) if own else x for x, own in pairs]

    def _copy(self) -> list[Tensor]:
        return [x.detach().clone() for x in self.objective.variables]

    def _restore_best(self) -> None:
        self._put(self.best)

    @torch.no_grad()
    def _put(self, variables: list[Tensor]) -> None:
        for x, kept in zip(self.objective.variables, variables, strict=True):
            x.copy_(kept)
            x.grad = None
