"""Where the errors of a completion are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.errors import ShapeError
from lowrank_opt.extras import extra
from lowrank_opt.plots.canvas import (
    BLUE,
    GREY,
    RED,
    axes_or_new,
    check_choice,
    fitted,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowrank_opt.completion import BayesianResult, CompletionResult
    from lowrank_opt.observations import Observations

_FEW = 2000


class ResidualDisplay:
    """Observed values, predictions, and their differences.

    Parameters
    ----------
    observed, predicted : array, shape (k,)

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure

    Raises
    ------
    ShapeError
        If the arrays are not vectors of one length.

    Examples
    --------
    >>> display = ResidualDisplay(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
    >>> display.residuals.tolist(), round(display.rmse, 4)
    ([-0.5, 0.0], 0.3536)
    """

    ax_: Axes
    figure_: Figure

    def __init__(self, observed: NDArray[np.floating], predicted: NDArray[np.floating]) -> None:
        self.observed: NDArray[np.float64] = np.asarray(observed, dtype=np.float64)
        self.predicted: NDArray[np.float64] = np.asarray(predicted, dtype=np.float64)
        if self.observed.ndim != 1 or self.observed.shape != self.predicted.shape:
            raise ShapeError(
                "observed and predicted must be vectors of one length; got shapes "
                f"{self.observed.shape} and {self.predicted.shape}"
            )

    @classmethod
    def from_result(
        cls, result: CompletionResult | BayesianResult, observations: Observations
    ) -> ResidualDisplay:
        """Return the display of a result on entries, best of all ones that it was not fitted to."""
        predicted = result.predict(observations.rows, observations.cols)
        return cls(observations.values.cpu().numpy(), predicted.cpu().numpy())

    @classmethod
    def from_estimator(cls, estimator: object, observations: Observations) -> ResidualDisplay:
        """Return the display of a fitted estimator with a ``result_``."""
        return cls.from_result(fitted(estimator, "result_"), observations)  # pyright: ignore[reportArgumentType]

    @property
    def residuals(self) -> NDArray[np.float64]:
        """Observed minus predicted, shape (k,)."""
        return self.observed - self.predicted

    @property
    def rmse(self) -> float:
        """The root mean squared residual."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    def plot(
        self,
        ax: Axes | None = None,
        *,
        kind: Literal[
            "residual_vs_predicted", "actual_vs_predicted", "histogram"
        ] = "residual_vs_predicted",
    ) -> ResidualDisplay:
        """Draw it; more than 2000 points are counted in hexagons.

        Raises
        ------
        OptionError
            If `kind` is something else.
        """
        check_choice("kind", kind, ("residual_vs_predicted", "actual_vs_predicted", "histogram"))
        ax = axes_or_new(ax)
        if kind == "histogram":
            self._plot_histogram(ax)
        elif kind == "actual_vs_predicted":
            self._plot_cloud(ax, self.observed)
            ends = [min(self.predicted.min(), self.observed.min()), self.predicted.max()]
            ax.plot(ends, ends, color=RED, lw=1.2, ls="--")
            ax.set(xlabel="predicted", ylabel="observed")
        else:
            self._plot_cloud(ax, self.residuals)
            ax.axhline(0, color=RED, lw=1.2, ls="--")
            ax.set(xlabel="predicted", ylabel="observed - predicted")
        title = f"RMSE {self.rmse:.4g} on {len(self.observed)} entries"
        ax.set_title(title, fontsize=9, color=GREY)
        tidy(ax)
        self.ax_, self.figure_ = ax, ax.get_figure()  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def _plot_cloud(self, ax: Axes, y: NDArray[np.float64]) -> None:
        if len(y) <= _FEW:
            ax.plot(self.predicted, y, "o", color=BLUE, ms=3, alpha=0.5, mew=0)
            return
        with extra("plots"):
            from matplotlib import colormaps
            from matplotlib.colors import ListedColormap

        # The palest of the blues could not be told from the paper.
        blues = colormaps["Blues"](np.linspace(0.25, 1, 128))
        cmap = ListedColormap(blues)
        cells = ax.hexbin(self.predicted, y, gridsize=45, bins="log", mincnt=1, cmap=cmap, lw=0)
        ax.figure.colorbar(cells, ax=ax, label="entries")

    def _plot_histogram(self, ax: Axes) -> None:
        bins = int(np.clip(np.sqrt(len(self.residuals)), 10, 60))
        ax.hist(self.residuals, bins=bins, color=BLUE, alpha=0.8)
        ax.axvline(0, color=RED, lw=1.2, ls="--")
        ax.set(xlabel="observed - predicted", ylabel="entries")
