"""What solvers of a fixed rank share: a start, stages of growing rank, the loop around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch

from lowrank_opt.checks import check_rank
from lowrank_opt.completion.loop.checkpoint import unpacked
from lowrank_opt.completion.loop.remembered import Memory, Remembered
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.spectral_start import (
    grow,
    significant_start,
    spectral_start,
)
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.errors import OptionError
from lowrank_opt.operator import LowRankOperator

Start: TypeAlias = Literal["stages", "spectral"]

# A stage ends when a step decreases the loss by less than this share: what is left is mostly the
# components that it does not have.
_STAGE_SETTLED = 0.01
_ROUNDING = 64 * torch.finfo(torch.float64).eps


class State(NamedTuple):
    """A matrix on the way, in the unit of an `ObservedFit`.

    Parameters
    ----------
    operator : LowRankOperator, float64
    loss : float
    gradient_norm : float
        Of the Riemannian gradient, in a metric close to that of the m x n matrices.
    final : bool
        Whether the rank grows no further.
    """

    operator: LowRankOperator
    loss: float
    gradient_norm: float
    final: bool = True


# From a point, or from where a memory says.
Descent: TypeAlias = Callable[[ObservedFit, Point, Memory], Iterator[State]]


TRAITS = Traits(sets=("rank",), checkpoint=True)


def check_options(start: Start, tolerance: float, max_iterations: int) -> None:
    """Raise OptionError unless the options that these solvers share are in their domains."""
    check_amounts(tolerance=tolerance)
    check_counts(max_iterations=max_iterations)
    if start not in ("stages", "spectral"):
        raise OptionError(f"start must be 'stages' or 'spectral'; got start={start!r}")


def complete_at_rank(
    descend: Descent,
    problem: CompletionProblem,
    run: Run,
    *,
    start: Start,
    tolerance: float,
    max_iterations: int,
) -> CompletionResult:
    """Hold out entries, fit biases, and run a descent from its start.

    Parameters
    ----------
    descend : callable
        Takes the problem, a point and the memory of `Remembered`, yields that point and then ever
        better ones of its rank; it ends if no step decreases the loss.
    problem : CompletionProblem
        With a rank; biases are fitted first, alone, and subtracted.
    run : Run
    start, tolerance, max_iterations
        As in `Riemannian`.

    Raises
    ------
    RankError
        If the rank exceeds the sides of the matrix.
    ShapeError, ObservationError
        If entries cannot be held out, or their squares overflow.
    """
    rank = check_rank(problem.fixed_rank, problem.shape)
    fitted, held_out = run.split(problem.observations)
    fit = ObservedFit.of(fitted, bias=problem.bias, bias_penalty=problem.bias_penalty)
    states = by_stages if start == "stages" else _direct

    def iterates(memory: Memory) -> Iterator[Iterate]:
        return (_iterate(fit, state) for state in states(fit, rank, descend, memory))

    return iterate(
        Remembered(iterates),
        fitted,
        held_out,
        run,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


def by_stages(fit: ObservedFit, rank: int, descend: Descent, memory: Memory) -> Iterator[State]:
    """Descend at rank after rank, each time adding what stands out of the residual.

    An ill-conditioned matrix hides its small components below the noise of sampling, and a fit of
    full rank fills them with that noise. Once the large components are fitted, the small ones
    stand out of what is left.

    References
    ----------
    Vandereycken (2013), section 5.5, raises the rank one by one.
    """
    point = Point(**memory["stage"]) if memory else significant_start(fit, rank)
    while True:
        memory["stage"] = unpacked(point)
        states = descend(fit, point, memory.setdefault("descent", {}))
        if len(point.s) == rank:
            yield from states
            return
        last = None
        for state in _until_settled(states, memory):
            last = state
            yield state._replace(final=False)
        assert last is not None, "a descent yields its start"
        point = grow(fit, _point(last), rank)
        memory |= {"descent": {}, "before": None}


def _direct(fit: ObservedFit, rank: int, descend: Descent, memory: Memory) -> Iterator[State]:
    point = Point(**memory["stage"]) if memory else spectral_start(fit, rank)
    memory["stage"] = unpacked(point)
    yield from descend(fit, point, memory.setdefault("descent", {}))


def _until_settled(states: Iterator[State], memory: Memory) -> Iterator[State]:
    for state in states:
        yield state
        before = memory.get("before")
        if before is not None and state.loss >= (1 - _STAGE_SETTLED) * before:
            return
        memory["before"] = state.loss


def _point(state: State) -> Point:
    U, s, V = state.operator.thin_svd()
    return Point(U, s, V)


def _iterate(fit: ObservedFit, state: State) -> Iterate:
    left, scale, right = state.operator
    # Weights are about one: a gradient step decreases the loss by about half the square of the
    # gradient. When that is rounding, the minimum is reached.
    settled = state.final and state.gradient_norm**2 <= _ROUNDING * state.loss
    return fit.iterate(left, scale, right, state.loss, state.gradient_norm, settled=settled)
