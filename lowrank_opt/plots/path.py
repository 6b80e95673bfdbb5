"""Held-out error along a path of settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lowrank_opt.errors import OptionError
from lowrank_opt.plots.canvas import COLOURS, GREY, RED, axes_or_new, fitted, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowrank_opt.completion.after.path import PathPoint, RegularizationPath

_WIDE = 5.0
_ROOM = 0.13


class PathDisplay:
    """Validation error against one setting, one line for each value of the others.

    Biases alone, of rank zero, are a horizontal line.

    Parameters
    ----------
    path : RegularizationPath
        Of at least one point.

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure

    Raises
    ------
    OptionError
        If there is no point.
    """

    ax_: Axes
    figure_: Figure

    def __init__(self, path: RegularizationPath) -> None:
        if len(path) == 0:
            raise OptionError("a path must have a point to be drawn; got none")
        self.path = path

    @classmethod
    def from_result(cls, path: RegularizationPath) -> PathDisplay:
        """Return the display of a path, as `follow_path` returns it."""
        return cls(path)

    @classmethod
    def from_estimator(cls, estimator: object) -> PathDisplay:
        """Return the display of a fitted estimator with a ``path_``."""
        return cls(fitted(estimator, "path_"))  # pyright: ignore[reportArgumentType]

    def plot(self, ax: Axes | None = None, *, x: str | None = None) -> PathDisplay:
        """Draw it.

        Parameters
        ----------
        ax : Axes, optional
        x : str, optional
            The setting on the horizontal axis; by default the one with the most values.

        Raises
        ------
        OptionError
            If there is no such setting.
        """
        names = list(self.path.points[0].setting)
        if x is not None and x not in names:
            raise OptionError(f"x must be a setting of the path, {names}; got x={x!r}")
        name = x or max(names, key=self._values)
        ax = axes_or_new(ax)
        for (label, points), colour in zip(self._lines(name), _cycle(), strict=False):
            places = [p.setting[name] for p in points]
            errors = [p.validation_rmse for p in points]
            ax.plot(places, errors, "o-", color=colour, ms=4, lw=1.4, label=label)
        self._plot_best(ax, name)
        for point in (p for p in self.path.points if _alone(p)):
            ax.axhline(point.validation_rmse, color=GREY, lw=1, ls=":", label="biases alone")
        places = [p.setting[name] for p in self._points]
        logarithmic = min(places) > 0 and max(places) > _WIDE * min(places)
        if logarithmic:
            ax.set_xscale("log")
        best = min(self._points, key=lambda p: p.validation_rmse)
        marks = _marks(best.setting[name], places, math.log if logarithmic else float)
        ax.set_xticks(marks, [f"{x:.3g}" for x in marks])
        ax.set_xticks([], minor=True)
        tidy(ax)
        ax.set(xlabel=name, ylabel="validation RMSE")
        if len(self._lines(name)) > 1:
            ax.legend(frameon=False, fontsize=9)
        self.ax_, self.figure_ = ax, ax.get_figure()  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def _plot_best(self, ax: Axes, name: str) -> None:
        best = self.path.best
        place = best.setting[name]
        if not _alone(best):
            ax.axvline(place, color=GREY, lw=1, ls="--", zorder=0)
            ax.plot(place, best.validation_rmse, "D", color=RED, ms=7)
        ax.set_title(
            f"best: {best.validation_rmse:.4g} at "
            + ", ".join(f"{k} = {v:.4g}" for k, v in best.setting.items()),
            fontsize=9,
            color=GREY,
        )

    @property
    def _points(self) -> list[PathPoint]:
        """Return the points with a matrix; all if there is none."""
        return [p for p in self.path.points if not _alone(p)] or list(self.path.points)

    def _values(self, name: str) -> int:
        return len({point.setting[name] for point in self._points})

    def _lines(self, name: str) -> list[tuple[str, list[PathPoint]]]:
        """Return the points that differ in one setting alone, with what they share."""
        varying = [k for k in self.path.points[0].setting if k != name and self._values(k) > 1]
        lines: dict[str, list[PathPoint]] = {}
        for point in self._points:
            if not math.isnan(point.validation_rmse):
                label = ", ".join(f"{k} = {point.setting[k]:.4g}" for k in varying)
                lines.setdefault(label, []).append(point)
        return [
            (label, sorted(points, key=lambda p: p.setting[name]))
            for label, points in lines.items()
        ]


def _alone(point: PathPoint) -> bool:
    return point.setting.get("rank") == 0


def _marks(first: float, places: list[float], scale: Callable[[float], float]) -> list[float]:
    """Return the places, the first one among them, that have room for a number each."""
    room = _ROOM * (scale(max(places)) - scale(min(places)))
    marks = [first]
    for x in sorted(set(places)):
        if all(abs(scale(x) - scale(y)) >= room for y in marks):
            marks.append(x)
    return sorted(set(marks))


def _cycle() -> list[str]:
    return [*COLOURS] * 20
