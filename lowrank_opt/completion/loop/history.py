"""What was measured at each iteration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lowrank_opt.extras import extra

if TYPE_CHECKING:
    from pandas import DataFrame


class Iteration(NamedTuple):
    """One line of a `History`.

    Parameters
    ----------
    objective : float
        Loss plus penalties.
    gradient_norm : float
        Euclidean norm over all free parameters and biases.
    validation_rmse : float
        NaN without validation entries.
    seconds : float
        Since the start.
    """

    objective: float
    gradient_norm: float
    validation_rmse: float
    seconds: float


@dataclass(frozen=True, repr=False)
class History:
    """Iterations as columns; the first is the start.

    Examples
    --------
    >>> history = History()
    >>> history.append(Iteration(2.0, 1.0, float("nan"), 0.1))
    >>> history.append(Iteration(0.5, 0.1, float("nan"), 0.2))
    >>> history
    History(2 lines, objective 2 to 0.5, 0.2 s)
    >>> history.objective
    [2.0, 0.5]
    """

    objective: list[float] = field(default_factory=list[float])
    gradient_norm: list[float] = field(default_factory=list[float])
    validation_rmse: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])

    def append(self, iteration: Iteration) -> None:
        """Add one line."""
        for name, value in iteration._asdict().items():
            getattr(self, name).append(value)

    def __len__(self) -> int:
        return len(self.objective)

    def __repr__(self) -> str:
        if not self.objective:
            return "History(0 lines)"
        first, last = self.objective[0], self.objective[-1]
        return (
            f"History({len(self)} lines, objective {first:.6g} to {last:.6g}, "
            f"{self.seconds[-1]:.3g} s)"
        )

    def columns(self) -> dict[str, list[float]]:
        """Return the columns by name."""
        return {name: list(getattr(self, name)) for name in Iteration._fields}

    def to_pandas(self) -> DataFrame:
        """Return a data frame with one line for each iteration."""
        with extra("experiments"):
            import pandas as pd
        return pd.DataFrame(self.columns())
