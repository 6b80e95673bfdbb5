"""Figures that are read on a telephone: 400 pixels wide, panels in a column, the legend outside."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 4.2, 150


def column(count: int, height: float = 2.3) -> "tuple[Figure, list[Axes]]":
    """Return a figure of panels one below another, whose axes are shared down the column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, count * height + 0.6), layout="constrained")
    panels = figure.subplots(count, 1, sharey=True, squeeze=False)[:, 0]
    return figure, list(panels)


def save(figure: "Figure", labelled: "Axes", path: Path, columns: int = 2) -> None:
    """Write a figure with the legend of one panel above all of them, off the data."""
    handles, labels = labelled.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=DPI)
