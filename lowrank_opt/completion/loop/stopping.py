"""When to stop, and which iterate was best."""

import math

import torch

from lowrank_opt.completion.loop.checkpoint import State
from lowrank_opt.completion.loop.status import CompletionStatus

_WINDOW = 10
_LEAST = 1e-14


class Stopping:
    """Judges one iterate after another.

    An iterate is better by its validation error where there is one, else by its objective.

    Parameters
    ----------
    dtype : torch.dtype
        Of what is fitted, for what an exact fit is.
    tolerance : float
        Converged when the objective fell by less than this share over the last 10 iterations, or
        when the fit is exact: residuals of 1e-4 x tolerance, or of 16 units of rounding.
    patience : int
        Iterations without a better validation error before stopping.

    Attributes
    ----------
    improved : bool
        Whether the last iterate judged is the best one so far.
    """

    def __init__(self, dtype: torch.dtype, *, tolerance: float, patience: int) -> None:
        self.patience: int
        self.tolerance, self.patience = tolerance, patience
        self.lowest: list[float] = []
        self.since = 0
        self.best_score, self.best_index, self.improved = math.inf, -1, False
        # Residuals relative to the spread of the values, squared as the objective is.
        self.exact: float = max(16 * torch.finfo(dtype).eps, 1e-4 * tolerance) ** 2

    def judge(self, value: float, validation: float) -> CompletionStatus | None:
        """Take note of an iterate; return why to stop, or None.

        Parameters
        ----------
        value : float
            Finite, relative to the loss of predicting the mean.
        validation : float
            NaN without validation entries.
        """
        score = value if math.isnan(validation) else validation
        self.lowest.append(min(value, self.lowest[-1] if self.lowest else math.inf))
        index = len(self.lowest) - 1
        self.improved = score < self.best_score
        if self.improved:
            self.best_score, self.best_index = score, index
        if not math.isnan(validation) and index - self.best_index >= self.patience:
            return CompletionStatus.STOPPED_BY_VALIDATION
        if value <= self.exact:
            return CompletionStatus.EXACT_FIT
        if index >= self.since + _WINDOW and self._has_settled(index):
            return CompletionStatus.CONVERGED
        return None

    def tighten(self) -> bool:
        """Settle only at a tenth of the tolerance; return whether that is above rounding."""
        self.tolerance /= 10
        self.look_again()
        return self.tolerance > _LEAST

    def look_again(self) -> None:
        """Settle only after as many more iterations as settling takes."""
        self.since = max(0, len(self.lowest) - 1)

    def begin_anew(self) -> None:
        """Forget the iterates so far: the next ones have another objective."""
        self.lowest.clear()
        self.since = 0
        self.improved: bool
        self.best_score, self.best_index, self.improved = math.inf, -1, False

    def state(self) -> State:
        """Return what was seen so far, for a `Checkpoint`."""
        return [self.lowest, self.best_score, self.best_index, self.since, self.tolerance]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        self.best_score: float
        self.best_index: int
        self.since: int
        self.tolerance: float
        self.lowest, self.best_score, self.best_index, self.since, self.tolerance = state

    def _has_settled(self, index: int) -> bool:
        old, new = self.lowest[index - _WINDOW], self.lowest[index]
        return old - new <= self.tolerance * abs(old)
