"""What goes along with an iteration, for every solver: held-out entries, patience, progress."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_opt.completion.loop.progress import Progress, reporting
from lowrank_opt.completion.model.checks import check_counts
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    import torch

    from lowrank_opt.completion.loop.checkpoint import Checkpoint
    from lowrank_opt.completion.loop.history import Iteration
    from lowrank_opt.completion.results.result import CompletionResult

_PATIENCE = 20


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a solver: what is the same for all of them.

    Parameters
    ----------
    validation : float, Observations or None
        Entries for early stopping: a share in (0, 1) of the observations, held out at random and
        not fitted; or other entries of the same matrix. The iterate with the smallest (weighted)
        root mean squared error on them is returned.
    patience : int, optional
        Iterations without a smaller validation error before stopping; the solver's own by default.
    generator : torch.Generator, optional
        Of all random numbers.
    progress : bool or callable
        Show a bar, or call a function with each `Iteration`.
    checkpoint : Checkpoint, optional
        Where to leave the state, that of the optimizer included, and to go on from it.
    callbacks : tuple of callable
        Each is called with every `Iteration`, beside the progress.
    start : CompletionResult, optional
        Go on from its matrix and biases.

    Raises
    ------
    OptionError
        If a setting is outside its domain.

    Examples
    --------
    >>> run = Run(validation=0.1, patience=5)
    >>> run.patience, run.progress
    (5, False)
    """

    validation: float | Observations | None = None
    patience: int | None = None
    generator: torch.Generator | None = None
    progress: Progress = False
    checkpoint: Checkpoint | None = None
    callbacks: tuple[Callable[[Iteration], None], ...] = ()
    start: CompletionResult | None = None

    def __post_init__(self) -> None:
        if self.patience is not None:
            check_counts(patience=self.patience)
        if not (isinstance(self.progress, bool) or callable(self.progress)):
            raise OptionError(
                f"progress must be True, False or callable; got progress={self.progress!r}"
            )

    def split(self, observations: Observations) -> tuple[Observations, Observations | None]:
        """Return what to fit, and what to judge iterates by.

        Raises
        ------
        ShapeError
            If the entries are not of the same matrix, on the same device.
        ObservationError
            If the share cannot be held out.
        """
        return training_and_validation(observations, self.validation, self.generator)

    def patience_or(self, own: int = _PATIENCE) -> int:
        """Return the patience asked for, or a solver's own."""
        return own if self.patience is None else self.patience

    @contextmanager
    def reporting(self, max_iterations: int) -> Generator[Callable[[Iteration], None]]:
        """Yield a function to call once for each iteration."""
        with reporting(self.progress, max_iterations) as show:

            def report(iteration: Iteration) -> None:
                show(iteration)
                for callback in self.callbacks:
                    callback(iteration)

            yield report
