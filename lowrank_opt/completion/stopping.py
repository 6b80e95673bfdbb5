"""When to stop, and which iterate was best."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_opt.completion.status import CompletionStatus

_WINDOW = 10


class Stopping:
    """Judges one iterate after another.

    An iterate is better by its validation error where there is one, else by its objective.

    Parameters
    ----------
    variables : sequence of Tensor
        What is optimised; the best values are kept.
    tolerance : float
        Converged when the objective fell by less than this share over the last 10 iterations, or
        when the fit is exact: residuals of 1e-4 x tolerance, or of 16 units of rounding.
    patience : int
        Iterations without a better validation error before stopping.
    """

    def __init__(self, variables: Sequence[Tensor], *, tolerance: float, patience: int) -> None:
        self.variables, self.tolerance, self.patience = variables, tolerance, patience
        self.lowest: list[float] = []
        self.best, self.best_score, self.best_index = self._copy(), math.inf, -1
        # Residuals relative to the spread of the values, squared as the objective is.
        self.exact = max(16 * torch.finfo(variables[0].dtype).eps, 1e-4 * tolerance) ** 2

    def judge(self, value: float, validation: float) -> CompletionStatus | None:
        """Take note of an iterate; return why to stop, or None.

        Parameters
        ----------
        value : float
            Finite, in the unit of the objective.
        validation : float
            NaN without validation entries.
        """
        score = value if math.isnan(validation) else validation
        self.lowest.append(min(value, self.lowest[-1] if self.lowest else math.inf))
        index = len(self.lowest) - 1
        if score < self.best_score:
            self.best, self.best_score, self.best_index = self._copy(), score, index
        if not math.isnan(validation) and index - self.best_index >= self.patience:
            return CompletionStatus.STOPPED_BY_VALIDATION
        if value <= self.exact:
            return CompletionStatus.EXACT_FIT
        if index >= _WINDOW and self._has_settled(index):
            return CompletionStatus.CONVERGED
        return None

    @torch.no_grad()
    def restore_best(self) -> None:
        """Set the variables to the best iterate."""
        for x, kept in zip(self.variables, self.best, strict=True):
            x.copy_(kept)

    def _has_settled(self, index: int) -> bool:
        old, new = self.lowest[index - _WINDOW], self.lowest[index]
        return old - new <= self.tolerance * abs(old)

    def _copy(self) -> list[Tensor]:
        return [x.detach().clone() for x in self.variables]
