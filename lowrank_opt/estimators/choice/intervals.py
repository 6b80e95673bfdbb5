r"""Prediction intervals that hold for whom they are given: by what is known of row and column.

Of entries that were held out, the errors of four predictions are kept: with everything that is
known; with the column taken as never seen; with the row; with both. An entry whose row was never
seen is thus compared with entries whose rows were left out. Within each of the four, errors are
divided by a scale that falls with the numbers of entries in row and column, and calibrated within
groups of these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.errors import OptionError

Floats = NDArray[np.floating]
Counts = NDArray[np.integer]

# What is known of an entry: the row, the column.
LEVELS = ((True, True), (True, False), (False, True), (False, False))

_SMALLEST_GROUP = 300
_ROW_GROUPS, _COL_GROUPS = 5, 4
_LEAST_SCALE = 0.3
_SLACK = 1.02


@dataclass(frozen=True, eq=False)
class Level:
    """Errors where the same is known, calibrated by numbers of entries.

    Parameters
    ----------
    scale : array, shape (3,)
        The mean error is about ``scale @ (1, (1 + n)^-1/2, (1 + k)^-1/2)`` for n entries in the
        row and k in the column; what is not known has no term.
    least : float
        The smallest scale.
    row_cuts : array
        Numbers of entries at which groups of rows begin.
    col_cuts : tuple of array
        Those of columns, for each group of rows.
    scores : tuple of tuple of array
        Ascending, of each group of rows and columns.
    """

    scale: Floats
    least: float
    row_cuts: Floats
    col_cuts: tuple[Floats, ...]
    scores: tuple[tuple[Floats, ...], ...]

    @classmethod
    def of(cls, errors: Floats, rows: Counts, cols: Counts, known: tuple[bool, bool]) -> Level:
        """Calibrate absolute errors of entries with these counts."""
        scale, least = _fitted_scale(errors, rows, cols, known)
        scores = errors / _scales(scale, least, rows, cols)
        if known == (False, False):
            # All are predicted by one mean, so that ratings have few different errors. The mean of
            # the last fit is a little off: an interval must not end just before a rating.
            scores = scores * _SLACK
        row_cuts = _cuts(rows, _ROW_GROUPS) if known[0] else np.empty(0)
        group = np.searchsorted(row_cuts, rows, side="right")
        col_cuts, found = list[Floats](), list[tuple[Floats, ...]]()
        for g in range(len(row_cuts) + 1):
            here = group == g
            cuts = _cuts(cols[here], _COL_GROUPS) if known[1] else np.empty(0)
            inner = np.searchsorted(cuts, cols[here], side="right")
            parts = (np.sort(scores[here][inner == h]) for h in range(len(cuts) + 1))
            col_cuts.append(cuts)
            found.append(tuple(parts))
        return cls(scale, least, row_cuts, tuple(col_cuts), tuple(found))

    def margins(self, rows: Counts, cols: Counts, coverage: float) -> Floats:
        """Return what to add to and subtract from predictions; infinite with too few errors."""
        margins = np.empty(len(rows))
        group = np.searchsorted(self.row_cuts, rows, side="right")
        for g, (cuts, scores) in enumerate(zip(self.col_cuts, self.scores, strict=True)):
            inner = np.searchsorted(cuts, cols, side="right")
            for h, found in enumerate(scores):
                margins[(group == g) & (inner == h)] = _quantile(found, coverage)
        return margins * _scales(self.scale, self.least, rows, cols)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Calibrated errors for each of the four things that can be known of an entry.

    Parameters
    ----------
    levels : dict
        From what is known, ``(row, column)``.
    """

    levels: dict[tuple[bool, bool], Level]

    @classmethod
    def of(cls, errors: dict[tuple[bool, bool], Floats], rows: Counts, cols: Counts) -> Intervals:
        """Calibrate the errors of held-out entries, predicted in four ways.

        Parameters
        ----------
        errors : dict of array, shape (h,)
            Absolute, for what was used of an entry.
        rows, cols : array, shape (h,)
            How many entries that were fitted each one's row and column have.
        """
        levels = dict[tuple[bool, bool], Level]()
        for known in LEVELS:
            there = np.ones(len(rows), dtype=bool)
            for counts, used in ((rows, known[0]), (cols, known[1])):
                there &= (counts > 0) | (not used)
            levels[known] = Level.of(errors[known][there], rows[there], cols[there], known)
        return cls(levels)

    def margins(self, rows: Counts, cols: Counts, coverage: float) -> Floats:
        """Return margins for entries with so many fitted ones in row and column, maybe none.

        Raises
        ------
        OptionError
            If the coverage is not in (0, 1).
        """
        if not 0 < coverage < 1:
            raise OptionError(f"coverage must be in (0, 1); got coverage={coverage!r}")
        margins = np.empty(len(rows))
        for known, level in self.levels.items():
            here = ((rows > 0) == known[0]) & ((cols > 0) == known[1])
            margins[here] = level.margins(rows[here], cols[here], coverage)
        return margins


def _features(rows: Counts, cols: Counts, known: tuple[bool, bool]) -> Floats:
    terms = [np.ones(len(rows))]
    for counts, used in ((rows, known[0]), (cols, known[1])):
        terms.append(1 / np.sqrt(1.0 + counts) if used else np.zeros(len(counts)))
    return np.stack(terms, axis=1)


def _fitted_scale(
    errors: Floats, rows: Counts, cols: Counts, known: tuple[bool, bool]
) -> tuple[Floats, float]:
    if len(errors) == 0:
        return np.array([1.0, 0.0, 0.0]), 1.0
    mean = float(errors.mean()) or 1.0
    X = _features(rows, cols, known)
    # A ridge of one entry: a slope needs more than a few.
    ridge = np.diag([0.0, 1.0, 1.0])
    scale = np.linalg.solve(X.T @ X + ridge, X.T @ (errors / mean))
    # Less is known where there are fewer entries, never more.
    if (scale[1:] < 0).any():
        kept = np.concatenate(([True], scale[1:] >= 0))
        X = X * kept
        scale = np.linalg.lstsq(X.T @ X + ridge * kept, X.T @ (errors / mean), rcond=None)[0]
    return scale.clip(0) * mean, _LEAST_SCALE * mean


def _scales(scale: Floats, least: float, rows: Counts, cols: Counts) -> Floats:
    return np.maximum(_features(rows, cols, (True, True)) @ scale, least)


def _cuts(counts: Counts, most: int) -> Floats:
    """Return where groups of about equal size begin, none with too few errors."""
    groups = min(most, len(counts) // _SMALLEST_GROUP)
    if groups < 2:
        return np.empty(0)
    cuts = np.unique(np.quantile(counts, np.arange(1, groups) / groups))
    # A group between equal counts would be empty.
    sizes = np.diff(np.concatenate(([0], np.searchsorted(np.sort(counts), cuts), [len(counts)])))
    return cuts[np.cumsum(sizes[:-1]) >= _SMALLEST_GROUP / 2]


def _quantile(scores: Floats, coverage: float) -> float:
    k = math.ceil((len(scores) + 1) * coverage * (1 - 1e-12))
    return float(scores[k - 1]) if k <= len(scores) else math.inf
