"""The two figures of the MovieLens experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's palette: distinguishable with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class CurvePoint:
    """A fit of the ball of a radius: its test error, and what is proved of it.

    The gap is that to the optimum of the ball of every rank, relative to the objective.
    """

    rank: int
    radius: float
    rmse: float
    gap: float
    status: str
    cpu_seconds: float


Curves = Mapping[int, Sequence[CurvePoint]]


@dataclass(frozen=True)
class Spectrum:
    """Singular values, and the bound on their sum or on each of them."""

    name: str
    values: Sequence[float]
    radius: float | None = None
    bounds: Sequence[float] | None = None

    @property
    def label(self) -> str:
        """Return the name with the share of the bound that is used."""
        if self.radius is None:
            return f"{self.name}: at most the steps"
        total = sum(self.values)
        return f"{self.name}: sum {total:.2f} of {self.radius:g}"


def draw_figures(
    folder: Path,
    curves: Curves,
    references: Mapping[str, float],
    spectra: Sequence[Spectrum],
) -> list[Path]:
    """Write ``rmse_against_radius.png``, ``singular_values.png``, and both side by side.

    Parameters
    ----------
    folder : Path
        Exists and is writable.
    curves : mapping
        For each rank, test RMSE at each radius of the nuclear-norm ball.
    references : mapping
        Horizontal lines: name and RMSE.
    spectra : sequence of Spectrum
    """
    names = ("rmse_against_radius", "singular_values", "movielens")
    paths = [folder / f"{name}.png" for name in names]
    for path, columns in zip(paths, ("r", "s", "rs"), strict=True):
        size = (5.4 * len(columns), 3.8)
        figure, grid = plt.subplots(
            1, len(columns), figsize=size, layout="constrained", squeeze=False
        )
        for axes, column in zip(grid[0], columns, strict=True):
            if column == "r":
                _draw_radius(axes, curves, references)
            else:
                _draw_spectra(axes, spectra)
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return paths


def _draw_radius(axes: Axes, curves: Curves, references: Mapping[str, float]) -> None:
    for (rank, points), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        radius, error = [p.radius for p in points], [p.rmse for p in points]
        axes.plot(radius, error, color=colour, marker=marker, ms=4, lw=1.4, label=f"rank {rank}")
        open_ = [p for p in points if p.status != "CONVERGED"]
        axes.plot(
            [p.radius for p in open_],
            [p.rmse for p in open_],
            marker,
            color=colour,
            mfc="white",
            ms=5,
        )
    axes.plot([], [], "o", color="0.35", mfc="white", ms=5, label="open: the rank binds")
    for name, value in references.items():
        axes.axhline(value, color="0.45", lw=1, ls="--")
        axes.annotate(
            name,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color="0.35",
            fontsize=8,
        )
    axes.set(xlabel="bound on the nuclear norm", ylabel="test RMSE (fold u1)")
    axes.set_title("The norm bound is the regulariser", fontsize=10)
    _tidy(axes)


def _draw_spectra(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    for spectrum, colour, marker in zip(spectra, COLOURS, MARKERS, strict=False):
        index = range(1, len(spectrum.values) + 1)
        if spectrum.bounds is not None:
            axes.step(index, spectrum.bounds, where="mid", color=colour, lw=1, ls="--")
        axes.plot(
            index, spectrum.values, color=colour, marker=marker, ms=4, lw=1.2, label=spectrum.label
        )
    axes.set(xlabel="index", ylabel="singular value")
    axes.set_title("Singular values against their bounds", fontsize=10)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False)
