"""How an iteration went: objective and held-out error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from lowrank_opt.plots.canvas import (
    BLUE,
    GREY,
    RED,
    axes_or_new,
    check_choice,
    fitted,
    only_integers,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowrank_opt.completion import BayesianResult, CompletionResult, History

_WIDE = 20.0


class ConvergenceDisplay:
    """Objective, and validation error if there is one, against iterations or seconds.

    Parameters
    ----------
    history : History
    status : str, optional
        How it ended, in a few words for the title.

    Attributes
    ----------
    ax_ : Axes
        Of the objective.
    validation_ax_ : Axes or None
        Of the validation error: its twin.
    figure_ : Figure
    """

    ax_: Axes
    validation_ax_: Axes | None
    figure_: Figure

    def __init__(self, history: History, status: str | None = None) -> None:
        self.history: History
        self.status: str | None
        self.history, self.status = history, status

    @classmethod
    def from_result(cls, result: CompletionResult | BayesianResult) -> ConvergenceDisplay:
        """Return the display of a result."""
        return cls(result.history, result.status.value.partition(":")[0])

    @classmethod
    def from_estimator(cls, estimator: object) -> ConvergenceDisplay:
        """Return the display of a fitted estimator with a ``result_``."""
        return cls.from_result(fitted(estimator, "result_"))  # pyright: ignore[reportArgumentType]

    def plot(
        self, ax: Axes | None = None, *, x: Literal["iterations", "seconds"] = "iterations"
    ) -> ConvergenceDisplay:
        """Draw it; the objective on a logarithmic scale if it falls by more than a factor of 20.

        Raises
        ------
        OptionError
            If `x` is something else.
        """
        check_choice("x", x, ("iterations", "seconds"))
        ax = axes_or_new(ax)
        objective = self.history.objective
        steps = self.history.seconds if x == "seconds" else list(range(len(objective)))
        ax.plot(steps, objective, color=BLUE, lw=1.6, marker="o", ms=3, markevery=_every(objective))
        if objective and min(objective) > 0 and max(objective) > _WIDE * min(objective):
            ax.set_yscale("log")
        if x == "iterations":
            only_integers(ax)
        tidy(ax)
        ax.set_xlabel("seconds" if x == "seconds" else "iteration")
        ax.set_ylabel("objective", color=BLUE)
        ax.tick_params(axis="y", colors=BLUE, which="both")
        if self.status is not None:
            ax.set_title(self.status, fontsize=9, color=GREY)
        self.validation_ax_ = self._plot_validation(ax, steps)
        self.ax_, self.figure_ = ax, ax.get_figure()  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def _plot_validation(self, ax: Axes, steps: list[float] | list[int]) -> Axes | None:
        errors = self.history.validation_rmse
        known = [k for k, error in enumerate(errors) if not math.isnan(error)]
        if not known:
            return None
        twin = ax.twinx()
        best = min(known, key=errors.__getitem__)
        twin.plot([steps[k] for k in known], [errors[k] for k in known], color=RED, lw=1.6)
        twin.plot(steps[best], errors[best], "D", color=RED, ms=5)
        twin.annotate(
            f"{errors[best]:.4g}",
            (steps[best], errors[best]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=RED,
            fontsize=9,
        )
        twin.set_ylabel("validation RMSE", color=RED)
        twin.tick_params(axis="y", colors=RED)
        twin.spines[["top"]].set_visible(False)
        return twin


def _every(values: list[float]) -> int:
    """Return a distance of markers that leaves about twenty of them."""
    return max(1, len(values) // 20)
