r"""Prediction intervals that hold for whom they are given: by what is known of row and column.

Of entries that were held out, the errors of four predictions are kept: with everything that is
known; with the column taken as never seen; with the row; with both. An entry whose row was never
seen is thus compared with entries whose rows were left out. Within each of the four, errors are
divided by a scale that falls with the numbers of entries in row and column, or by the deviation of
a posterior, and calibrated within groups of these numbers.

Values on a scale give few different errors where all are predicted by one number, as entries of
which nothing is known: an interval that reaches one more error covers all the entries that have it.
There a share of the entries, told by a hash of their ids, gets the wider interval, as the smoothed
p-values of Vovk et al. (2005), section 2.3, have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
# Errors as close as this, relative to their size, are tied: they differ by rounding, and by the
# mean of a fit that went on.
_TIED = 2e-3
# Of a score that is multiplied by the scale that it was divided by.
_ROUNDED = 1e-9


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
    posterior : bool
        Whether errors are divided by deviations that come from outside, instead of the scale.
    """

    scale: Floats
    least: float
    row_cuts: Floats
    col_cuts: tuple[Floats, ...]
    scores: tuple[tuple[Floats, ...], ...]
    posterior: bool = False

    @classmethod
    def of(
        cls,
        errors: Floats,
        rows: Counts,
        cols: Counts,
        known: tuple[bool, bool],
        deviations: Floats | None = None,
    ) -> Level:
        """Calibrate absolute errors of entries with these counts, or with these deviations."""
        scale, least = _fitted_scale(errors, rows, cols, known)
        scales = _scales(scale, least, rows, cols) if deviations is None else deviations
        scores = errors / scales
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
        given = deviations is not None
        return cls(scale, least, row_cuts, tuple(col_cuts), tuple(found), given)

    def margins(
        self,
        rows: Counts,
        cols: Counts,
        coverage: float,
        *,
        draws: Floats | None = None,
        deviations: Floats | None = None,
    ) -> Floats:
        """Return what to add to and subtract from predictions; infinite with too few errors.

        Parameters
        ----------
        rows, cols : array, shape (k,)
            Numbers of entries.
        coverage : float
        draws : array, shape (k,), optional
            In [0, 1), which decide between two tied errors; zero, for the wider one, by default.
        deviations : array, shape (k,), optional
            What errors are divided by, of a level that was calibrated so.
        """
        draws = np.zeros(len(rows)) if draws is None else draws
        margins = np.empty(len(rows))
        for here, scores in self._groups(rows, cols):
            margins[here] = _quantiles(scores, coverage, draws[here])
        return margins * self._scales(rows, cols, deviations)

    def deviations(self, rows: Counts, cols: Counts, *, deviations: Floats | None = None) -> Floats:
        """Return root mean squares of the errors, NaN without any."""
        found = np.empty(len(rows))
        for here, scores in self._groups(rows, cols):
            found[here] = np.sqrt(np.mean(scores**2)) if len(scores) > 0 else np.nan
        return found * self._scales(rows, cols, deviations)

    def _groups(self, rows: Counts, cols: Counts) -> Iterator[tuple[NDArray[np.bool_], Floats]]:
        """Yield which entries are in a group, and its scores."""
        group = np.searchsorted(self.row_cuts, rows, side="right")
        for g, (cuts, scores) in enumerate(zip(self.col_cuts, self.scores, strict=True)):
            inner = np.searchsorted(cuts, cols, side="right")
            for h, found in enumerate(scores):
                yield (group == g) & (inner == h), found

    def _scales(self, rows: Counts, cols: Counts, deviations: Floats | None) -> Floats:
        if not self.posterior:
            return _scales(self.scale, self.least, rows, cols)
        assert deviations is not None, "errors were divided by deviations"
        return deviations


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
    def of(
        cls,
        errors: dict[tuple[bool, bool], Floats],
        rows: Counts,
        cols: Counts,
        deviations: Floats | None = None,
    ) -> Intervals:
        """Calibrate the errors of held-out entries, predicted in four ways.

        Parameters
        ----------
        errors : dict of array, shape (h,)
            Absolute, for what was used of an entry.
        rows, cols : array, shape (h,)
            How many entries that were fitted each one's row and column have.
        deviations : array, shape (h,), optional
            Of a posterior, where row and column are known.
        """
        levels = dict[tuple[bool, bool], Level]()
        for known in LEVELS:
            there = np.ones(len(rows), dtype=bool)
            for counts, used in ((rows, known[0]), (cols, known[1])):
                there &= (counts > 0) | (not used)
            own = None if deviations is None or not all(known) else deviations[there]
            levels[known] = Level.of(errors[known][there], rows[there], cols[there], known, own)
        return cls(levels)

    @property
    def posterior(self) -> bool:
        """Whether deviations of a posterior are needed for entries of which all is known."""
        return self.levels[True, True].posterior

    def margins(
        self,
        rows: Counts,
        cols: Counts,
        coverage: float,
        *,
        draws: Floats | None = None,
        deviations: Floats | None = None,
    ) -> Floats:
        """Return margins for entries with so many fitted ones in row and column, maybe none.

        Raises
        ------
        OptionError
            If the coverage is not in (0, 1).
        """
        if not 0 < coverage < 1:
            raise OptionError(f"coverage must be in (0, 1); got coverage={coverage!r}")
        draws = np.zeros(len(rows)) if draws is None else draws
        margins = np.empty(len(rows))
        for here, level in self._parts(rows, cols):
            std = None if deviations is None else deviations[here]
            margins[here] = level.margins(
                rows[here], cols[here], coverage, draws=draws[here], deviations=std
            )
        return margins

    def deviations(self, rows: Counts, cols: Counts, *, deviations: Floats | None = None) -> Floats:
        """Return the standard deviations of new values, by the errors of those like them."""
        found = np.empty(len(rows))
        for here, level in self._parts(rows, cols):
            std = None if deviations is None else deviations[here]
            found[here] = level.deviations(rows[here], cols[here], deviations=std)
        return found

    def _parts(self, rows: Counts, cols: Counts) -> Iterator[tuple[NDArray[np.bool_], Level]]:
        for known, level in self.levels.items():
            yield ((rows > 0) == known[0]) & ((cols > 0) == known[1]), level


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


def _quantiles(scores: Floats, coverage: float, draws: Floats) -> Floats:
    """Return the score that an interval reaches, for each draw.

    The k-th of n, for the smallest k with k / (n + 1) at least the coverage. Where t scores are
    tied with it, and b are below, it is reached with chance (k - b) / (t + 1), else not quite: a
    new score, exchangeable with these, is reached with chance k / (n + 1), ties or not.
    """
    n = len(scores)
    k = math.ceil((n + 1) * coverage * (1 - 1e-12))
    if k > n:
        return np.full(len(draws), math.inf)
    reached = scores[k - 1]
    ends = reached * (1 - _TIED), reached * (1 + _TIED)
    below = int(np.searchsorted(scores, ends[0], side="left"))
    above = int(np.searchsorted(scores, ends[1], side="right"))
    if above - below == 1:
        return np.full(len(draws), reached * (1 + _ROUNDED))
    return np.where(draws < (k - below) / (above - below + 1), ends[1], ends[0])
