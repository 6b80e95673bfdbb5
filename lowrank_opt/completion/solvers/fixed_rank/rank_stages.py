"""What solvers of a fixed rank share: a start, stages of growing rank, the loop around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch

from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.solvers.fixed_rank.geometry import Point
from lowrank_opt.completion.solvers.fixed_rank.observed_fit import ObservedFit
from lowrank_opt.completion.solvers.fixed_rank.spectral_start import (
    grow,
    significant_start,
    spectral_start,
)
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.completion.solvers.iterates import Iterate, run
from lowrank_opt.errors import OptionError, RankError
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from lowrank_opt.completion.loop.progress import Progress
    from lowrank_opt.completion.results.result import CompletionResult
    from lowrank_opt.observations import Observations

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


Descent: TypeAlias = Callable[[ObservedFit, Point], Iterator[State]]


def complete_at_rank(
    descend: Descent,
    observations: Observations,
    rank: int,
    *,
    start: Start,
    bias: Literal["additive"] | None,
    bias_penalty: float,
    tolerance: float,
    max_iterations: int,
    validation: float | Observations | None,
    patience: int,
    generator: torch.Generator | None,
    progress: Progress,
) -> CompletionResult:
    """Check settings, hold out entries, fit biases, and run a descent from its start.

    Parameters
    ----------
    descend : callable
        Takes the problem and a point, yields that point and then ever better ones of its rank; it
        ends if no step decreases the loss.
    observations, rank, start, bias, bias_penalty, tolerance, max_iterations
        As in `riemannian`.
    validation, patience, generator, progress
        As in `complete`.

    Raises
    ------
    RankError, RadiusError, OptionError, ShapeError, ObservationError
        If a setting is outside its domain.
    """
    check_counts(rank=rank, max_iterations=max_iterations, patience=patience)
    check_amounts(bias_penalty=bias_penalty, tolerance=tolerance)
    _check_rank_and_choices(observations, rank, start, bias)
    fitted, held_out = training_and_validation(observations, validation, generator)
    fit = ObservedFit.of(fitted, bias=bias, bias_penalty=bias_penalty)
    states = by_stages(fit, rank, descend) if start == "stages" else _direct(fit, rank, descend)
    return run(
        (_iterate(fit, state) for state in states),
        fitted,
        held_out=held_out,
        tolerance=tolerance,
        max_iterations=max_iterations,
        patience=patience,
        progress=progress,
    )


def by_stages(fit: ObservedFit, rank: int, descend: Descent) -> Iterator[State]:
    """Descend at rank after rank, each time adding what stands out of the residual.

    An ill-conditioned matrix hides its small components below the noise of sampling, and a fit of
    full rank fills them with that noise. Once the large components are fitted, the small ones
    stand out of what is left.

    References
    ----------
    Vandereycken (2013), section 5.5, raises the rank one by one.
    """
    point = significant_start(fit, rank)
    while len(point.s) < rank:
        last = None
        for state in _until_settled(descend(fit, point)):
            last = state
            yield state._replace(final=False)
        assert last is not None, "a descent yields its start"
        point = grow(fit, _point(last), rank)
    yield from descend(fit, point)


def _direct(fit: ObservedFit, rank: int, descend: Descent) -> Iterator[State]:
    yield from descend(fit, spectral_start(fit, rank))


def _until_settled(states: Iterator[State]) -> Iterator[State]:
    before = None
    for state in states:
        yield state
        if before is not None and state.loss >= (1 - _STAGE_SETTLED) * before:
            return
        before = state.loss


def _point(state: State) -> Point:
    U, s, V = state.operator.thin_svd()
    return Point(U, s, V)


def _iterate(fit: ObservedFit, state: State) -> Iterate:
    left, scale, right = state.operator
    # Weights are about one: a gradient step decreases the loss by about half the square of the
    # gradient. When that is rounding, the minimum is reached.
    settled = state.final and state.gradient_norm**2 <= _ROUNDING * state.loss
    return fit.iterate(left, scale, right, state.loss, state.gradient_norm, settled=settled)


def _check_rank_and_choices(
    observations: Observations, rank: int, start: str, bias: str | None
) -> None:
    m, n = observations.shape
    if rank > min(m, n):
        raise RankError(f"rank must be in 1..{min(m, n)} for a {m} x {n} matrix; got rank={rank}")
    if start not in ("stages", "spectral"):
        raise OptionError(f"start must be 'stages' or 'spectral'; got start={start!r}")
    if bias not in ("additive", None):
        raise OptionError(f"bias must be 'additive' or None; got bias={bias!r}")
