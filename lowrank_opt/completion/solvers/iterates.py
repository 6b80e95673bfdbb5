"""The loop around every solver that is not a torch optimizer: judge iterates, keep the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.loop.checkpoint import Checkpoint, State, own_lines
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.loop.stopping import Stopping
from lowrank_opt.completion.model.bias import AdditiveBias, loss_of_the_mean
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.held_out import root_mean_square_error
from lowrank_opt.completion.solvers.proof import Proof
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut
from lowrank_opt.operator import LowRankOperator


class Iterate(NamedTuple):
    """What a solver holds after a step; the first one is its start.

    Parameters
    ----------
    operator : LowRankOperator
        Its tensors are not written to by later steps.
    bias : AdditiveBias
    objective : float
        Loss, half the weighted sum of squared residuals, plus penalties.
    gradient_norm : float
    settled : bool
        Whether the solver's own criterion, such as a duality gap, is met.
    stage : int
        Objectives are compared within a stage: the first iterate of another one is the best so
        far, unless validation entries tell.
    """

    operator: LowRankOperator
    bias: AdditiveBias
    objective: float
    gradient_norm: float = math.nan
    settled: bool = False
    stage: int = 0


@runtime_checkable
class Resumable(Protocol):
    """An iterator of iterates that can go on from a `Checkpoint`."""

    def state(self) -> State:
        """Return what the next iterates depend on, besides the arguments of the solver."""
        ...

    def resume(self, state: State) -> None:
        """Go on from a state."""
        ...


def iterate(
    iterates: Iterator[Iterate],
    fitted: Observations,
    held_out: Observations | None,
    run: Run,
    *,
    tolerance: float,
    max_iterations: int,
    patience: int = 20,
    problem: ConvexProblem | None = None,
    gap: float | None = None,
    rank: int | None = None,
    leave: Callable[[Iterate, float], bool] | None = None,
) -> CompletionResult:
    """Take iterates from a solver until one of the criteria of `Stopping` is met.

    Parameters
    ----------
    iterates : iterator of Iterate
        If it ends by itself, no step decreases its objective any further.
    fitted, held_out : Observations
        As `Run.split` returned them. The iterate with the smallest error on those held out is
        returned; without them, that with the smallest objective.
    run : Run
        With a checkpoint, the iterator must be `Resumable`.
    tolerance, max_iterations
        As in `Stopping`; a tolerance of zero leaves the decision to the solver.
    patience : int
        The solver's own.
    problem : ConvexProblem, optional
        What the solver minimises, for `CompletionResult.certificate`.
    gap : float, optional
        Converged only if the certificate proves this gap, relative to the objective; else the
        tolerance is lowered. For iterates that are not `settled` by themselves, without entries
        held out.
    rank : int, optional
        Of iterates at most, where the problem does not say.
    leave : callable, optional
        From an iterate that settled, makes the iterator go on from a point that is better by a
        share of the objective; returns whether there is one.
    """
    patience = run.patience_or(patience)
    stopping = Stopping(fitted.dtype, tolerance=tolerance, patience=patience)
    proof = Proof.of(problem, None if held_out is not None else gap, rank)
    loop = _Loop(fitted, held_out, stopping, proof, leave)
    with run.reporting(max_iterations) as report:
        first = 0 if run.checkpoint is None else loop.resume(iterates, run.checkpoint)
        status = loop.run(iterates, first, max_iterations, report, run.checkpoint)
    assert loop.best is not None, "a solver yields its start before anything can go wrong"
    return CompletionResult(
        loop.best.operator,
        loop.best.bias,
        status,
        loop.history,
        problem=problem,
        proved=None if proof is None else proof.last,
    )


class _Loop:
    def __init__(
        self,
        observations: Observations,
        held_out: Observations | None,
        stopping: Stopping,
        proof: Proof | None,
        leave: Callable[[Iterate, float], bool] | None,
    ) -> None:
        self.held_out, self.stopping = held_out, stopping
        self.proof, self.leave = proof, leave
        self.unit, self.device = loss_of_the_mean(observations) or 1.0, observations.device
        self.cut = is_cut(observations)
        self.history = History()
        self.best: Iterate | None = None
        self.stage = 0
        self.start = time.perf_counter()

    def run(
        self,
        iterates: Iterator[Iterate],
        first: int,
        max_iterations: int,
        report: Callable[[Iteration], None],
        checkpoint: Checkpoint | None,
    ) -> CompletionStatus:
        if first > max_iterations:
            return CompletionStatus.MAX_ITERATIONS
        try:
            for step, iterate in enumerate(iterates, start=first):
                status = self._judge(iterate, report)
                if status is not None:
                    return status
                if step == max_iterations:
                    return CompletionStatus.MAX_ITERATIONS
                if checkpoint is not None:
                    checkpoint.offer(step + 1, partial(self._state, iterates))
        except KeyboardInterrupt:
            return CompletionStatus.INTERRUPTED
        return self._at_the_end()

    def _at_the_end(self) -> CompletionStatus:
        """Return how it is with an iterate from which no step descends."""
        proof, best = self.proof, self.best
        if proof is None or best is None:
            return CompletionStatus.STALLED
        if proof.reached(best.operator, best.bias):
            return CompletionStatus.CONVERGED
        return proof.status

    def resume(self, iterates: Iterator[Iterate], checkpoint: Checkpoint) -> int:
        """Go on from a checkpoint, if there is one; return the number of iterates so far."""
        if not isinstance(iterates, Resumable):
            raise OptionError("this solver leaves no checkpoints: leave checkpoint at None")
        state = checkpoint.restored(self.device)
        if state is None:
            return 0
        assert isinstance(state, dict), "as `_state` returned it"
        iterates.resume(state["solver"])
        self.stopping.resume(state["stopping"])
        if self.proof is not None:
            self.proof.resume(state["proof"])
        self.history = History(**state["history"])
        self.start -= self.history.seconds[-1]
        self.stage = state["stage"]
        factors, bias, objective = state["best"]
        self.best = Iterate(LowRankOperator(*factors), AdditiveBias(*bias), objective)
        return len(self.history)

    def _state(self, iterates: Iterator[Iterate]) -> State:
        assert isinstance(iterates, Resumable), "checked before the first step"
        assert self.best is not None, "there was a step"
        (left, scale, right), bias = self.best.operator, self.best.bias
        own: list[State] = [left, bias.rows]
        if self.cut:
            own = [own_lines(x) for x in own]
        return {
            "solver": iterates.state(),
            "stopping": self.stopping.state(),
            "proof": None if self.proof is None else self.proof.state(),
            "history": self.history.columns(),
            "best": [
                [own[0], scale, right],
                [bias.mean, own[1], bias.cols],
                self.best.objective,
            ],
            "stage": self.stage,
        }

    def _judge(
        self, iterate: Iterate, report: Callable[[Iteration], None]
    ) -> CompletionStatus | None:
        if self.best is None:
            self.best = iterate
        if not math.isfinite(iterate.objective):
            return CompletionStatus.NUMERICAL_TROUBLE
        seconds = time.perf_counter() - self.start
        line = Iteration(iterate.objective, iterate.gradient_norm, self._rmse(iterate), seconds)
        self.history.append(line)
        report(line)
        if iterate.stage != self.stage and self.held_out is None:
            self.stage = iterate.stage
            self.stopping.begin_anew()
        status = self.stopping.judge(iterate.objective / self.unit, line.validation_rmse)
        if self.stopping.improved:
            self.best = iterate
        if iterate.settled:
            return CompletionStatus.CONVERGED
        return self._proved(iterate) if status is CompletionStatus.CONVERGED else status

    def _proved(self, iterate: Iterate) -> CompletionStatus | None:
        """Return whether an iterate that settled is the optimum, or None to go on."""
        proof = self.proof
        if proof is None:
            return CompletionStatus.CONVERGED
        status = proof.verdict(
            iterate.operator,
            iterate.bias,
            leave=None if self.leave is None else partial(self.leave, iterate),
            tighten=self.stopping.tighten,
        )
        if status is None:
            self.stopping.look_again()
        return status

    def _rmse(self, iterate: Iterate) -> float:
        if self.held_out is None:
            return math.nan
        result = CompletionResult(
            iterate.operator, iterate.bias, CompletionStatus.CONVERGED, History()
        )
        return root_mean_square_error(result, self.held_out)
