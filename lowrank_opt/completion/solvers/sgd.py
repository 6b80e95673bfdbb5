"""Stochastic gradient descent from a small start, stopped early: a fast point estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from lowrank_opt.completion.loop.checkpoint import Checkpoint, State
from lowrank_opt.completion.loop.remembered import Memory, Remembered
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.randomness import normal
from lowrank_opt.completion.model.standardize import standardize
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.iterates import Iterate, iterate
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet

_START = 0.01
# The loss stands still while the start is left, and falls again: a tolerance that is never met.
_NEVER = -1.0
_RATE, _LARGEST_RATE, _ORDINARY_COUNT = 0.01, 0.1, 64
_PENALTY, _LEAST_PENALTY, _LARGEST_PENALTY = 0.06, 0.02, 0.1
_MOST_EPOCHS = 200
_EPOCHS_OF_FEW = 30
_FEW_ENTRIES = 100
_SHARE, _MOST_HELD_OUT = 0.1, 20_000
# Of few entries, few are held out, and these tell little until the start is left.
_RANK, _PATIENCE, _PATIENCE_WITH_FEW, _FEW = 100, 25, 100, 10_000


@dataclass(frozen=True)
class _Settings:
    rank: int
    feasible: FeasibleSet | None
    penalty: float
    learning_rate: float


@dataclass(frozen=True)
class SGD:
    r"""Stochastic gradient steps from a start near zero, stopped early: a fast point estimate.

    In units of the values' standard deviation, minimises :math:`\frac12 \sum_k w_k (e_k^2 +
    \text{penalty} (\|u_i\|^2 + \|v_j\|^2 + a_i^2 + c_j^2))`, whose penalties grow with the number
    of entries of a row. From a start of size 0.01 a direction grows the faster the more of the data
    it explains, so that the number of epochs regularises like a rank: stopped early, rank 100, the
    default, is better than a small rank run to the end, and than the same steps from a large start.
    With a set, its rank is used, and every epoch's matrix is projected onto it.

    Parameters
    ----------
    penalty : float, optional
        Nonnegative. By default :math:`0.06 (64 / c)^{1/2}`, within 0.02 and 0.1, where
        :math:`c = N / (m n)^{1/2}` is the (geometric) mean number of entries of rows and columns.
    learning_rate : float, optional
        Positive; a step is shortened so that it never overshoots its residual. By default
        :math:`0.01 \max(64 / c, 1)`, at most 0.1: the small start is left at the same pace.
    max_iterations : int, optional
        Number of epochs. By default it is the best one, of at most 200, for a tenth of the entries
        (at most 20,000) held out; then all entries are fitted. Fewer than 100 entries get 30. With
        validation entries, those choose the epoch, without fitting again.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Patience is 25 epochs, or 100 with fewer than 10,000 entries: the small start is left in some
    twenty, without any gain until then. The result is in the dtype of the observations, and depends
    neither on their order nor on the number of threads. Its objective has the residuals met during
    an epoch.

    References
    ----------
    Koren, Bell and Volinsky (2009), Matrix factorization techniques for recommender systems,
    equation 5; blocks of a diagonal in parallel as in Gemulla et al. (2011), Large-scale matrix
    factorization with distributed stochastic gradient descent, section 3; the shortened steps are
    those of Toulis and Airoldi (2017), Asymptotic and finite-sample properties of estimators based
    on stochastic gradients, equation 4.

    Examples
    --------
    >>> SGD(penalty=0.0)
    SGD(penalty=0.0, learning_rate=None, max_iterations=None)
    """

    traits: ClassVar[Traits] = Traits(
        sets=("rank", "set", "nothing"), biases=("additive",), bias_penalty=False, checkpoint=True
    )
    penalty: float | None = None
    learning_rate: float | None = None
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        check_amounts(penalty=self.penalty or 0.0, learning_rate=self.learning_rate or 0.0)
        check_counts(max_iterations=1 if self.max_iterations is None else self.max_iterations)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the epoch chosen."""
        observations = problem.observations
        settings = self._settings(problem)
        if run.validation is None and self.max_iterations is None:
            epochs = None if run.checkpoint is None else _after_the_trial(run.checkpoint)
            if epochs is None and len(observations) >= _FEW_ENTRIES:
                trial = _trial(observations, settings, run)
                if trial.status is CompletionStatus.INTERRUPTED:
                    return trial
                epochs = max(1, int(np.nanargmin(trial.history.validation_rmse)))
            epochs = _EPOCHS_OF_FEW if epochs is None else epochs
            return _fit(observations, None, settings, epochs, _of_part(run, epochs))
        fitted, held_out = run.split(observations)
        epochs = _MOST_EPOCHS if self.max_iterations is None else self.max_iterations
        return _fit(fitted, held_out, settings, epochs, run)

    def _settings(self, problem: CompletionProblem) -> _Settings:
        penalty, rate = _defaults(problem.observations)
        return _Settings(
            min(problem.rank or _RANK, *problem.shape),
            problem.feasible_set,
            penalty if self.penalty is None else self.penalty,
            rate if self.learning_rate is None else self.learning_rate,
        )


def _defaults(observations: Observations) -> tuple[float, float]:
    """Return penalty and learning rate for the mean number of entries of rows and columns."""
    sparsity = _ORDINARY_COUNT * math.sqrt(math.prod(observations.shape)) / len(observations)
    penalty = min(max(_PENALTY * math.sqrt(sparsity), _LEAST_PENALTY), _LARGEST_PENALTY)
    return penalty, min(_RATE * max(sparsity, 1.0), _LARGEST_RATE)


def _trial(observations: Observations, settings: _Settings, run: Run) -> CompletionResult:
    """Return a fit of all but some entries, stopped by these."""
    share = min(_SHARE, _MOST_HELD_OUT / len(observations))
    trial_run = _of_part(replace(run, validation=share), None)
    # The same entries are held out in whatever order they came.
    kept, held_out = trial_run.split(observations.take(_places(observations).argsort()))
    return _fit(kept, held_out, settings, _MOST_EPOCHS, trial_run)


def _places(observations: Observations) -> torch.Tensor:
    return observations.rows * observations.shape[1] + observations.cols


def _fit(
    observations: Observations,
    held_out: Observations | None,
    settings: _Settings,
    epochs: int,
    run: Run,
) -> CompletionResult:
    return iterate(
        Remembered(lambda memory: _iterates(observations, settings, run.generator, memory)),
        observations,
        held_out,
        run,
        tolerance=_NEVER,
        max_iterations=epochs,
        patience=_PATIENCE if len(observations) >= _FEW else _PATIENCE_WITH_FEW,
    )


def _iterates(
    observations: Observations,
    settings: _Settings,
    generator: torch.Generator | None,
    memory: Memory,
) -> Iterator[Iterate]:
    mean, unit, scaled = standardize(observations)
    weighted = _with_unit_weights(scaled)
    steps = backend_of(observations.device).steps(weighted, settings.rank)
    m, n = observations.shape
    start = _START * normal((m + n, settings.rank), generator, like=observations.values)
    left, right = (x.contiguous() for x in start.split((m, n)))
    a, c = start.new_zeros(m), start.new_zeros(n)
    counts = [x.to(start.dtype) for x in (observations.row_counts, observations.col_counts)]
    squares, w = weighted.values.square(), weighted.weights
    loss = float((squares if w is None else squares * w).sum())
    if memory:
        # What was drawn for the start is drawn all the same: the generator goes on from there.
        left, right, a, c, loss = memory["model"]
    while True:
        memory["model"] = [left, right, a, c, loss]
        sizes = [x.square().sum(1) + b.square() for x, b in zip((left, right), (a, c), strict=True)]
        charge = sum(float(k @ s) for k, s in zip(counts, sizes, strict=True))
        root = math.sqrt(unit)
        operator = LowRankOperator(left * root, left.new_ones(settings.rank), right * root)
        if settings.feasible is not None:
            operator = settings.feasible.project(operator)
        objective = 0.5 * unit**2 * (loss + settings.penalty * charge)
        yield Iterate(operator, AdditiveBias(mean, a * unit, c * unit), objective)
        rate, penalty = settings.learning_rate, settings.penalty
        loss = steps.epoch((left, right), (a, c), rate=rate, penalty=penalty)


class _OfPart(Checkpoint):
    """The checkpoint of the trial, or of the fit after it, which knows what the trial found."""

    def __init__(self, whole: Checkpoint, epochs: int | None) -> None:
        super().__init__(
            whole.path,
            every=whole.every,
            seconds=whole.seconds,
            resume=whole.resume,
            settings=whole.settings,
            store=whole.store,
        )
        self.epochs = epochs

    def offer(self, iteration: int, state: Callable[[], State]) -> None:
        super().offer(iteration, lambda: [self.epochs, state()])

    def restored(self, device: torch.device | str = "cpu") -> State | None:
        found = super().restored(device)
        assert found is None or isinstance(found, list), "as `offer` wrote it"
        return None if found is None or found[0] != self.epochs else found[1]


def _of_part(run: Run, epochs: int | None) -> Run:
    whole = run.checkpoint
    return run if whole is None else replace(run, checkpoint=_OfPart(whole, epochs))


def _after_the_trial(checkpoint: Checkpoint) -> int | None:
    """Return the number of epochs that the trial found, None if it has not ended yet."""
    found = checkpoint.restored()
    assert found is None or isinstance(found, list), "as `_OfPart` wrote it"
    return None if found is None else found[0]


def _with_unit_weights(observations: Observations) -> Observations:
    """Return the same entries with weights of mean one."""
    w = observations.weights
    if w is None:
        return observations
    return Observations(
        observations.rows, observations.cols, observations.values, observations.shape, w / w.mean()
    )
