"""Means and scales of columns, from what is observed of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class ColumnScales:
    """Maps columns to mean zero and variance one, and back; NaN stays.

    Parameters
    ----------
    kept : array of bool, shape (n,)
        The columns that have a value.
    means, scales : array, shape (sum of kept,), float64
        The scale of a constant column is one.

    Examples
    --------
    >>> scales = ColumnScales.of(np.array([[1.0, np.nan], [3.0, np.nan]]))
    >>> scales.kept.tolist(), scales.scaled(np.array([[2.0, 5.0]])).tolist()
    ([True, False], [[0.0]])
    """

    kept: NDArray[np.bool_]
    means: NDArray[np.float64]
    scales: NDArray[np.float64]

    @classmethod
    def of(cls, data: Matrix) -> ColumnScales:
        """Return the scales of a matrix with NaN."""
        kept = np.asarray((~np.isnan(data)).any(axis=0))
        columns = data[:, kept].astype(np.float64)
        # In a unit in which squares neither overflow nor vanish.
        peaks = np.nanmax(np.abs(columns), axis=0, initial=0.0)
        unit = np.where(peaks > 0, peaks, 1.0)
        means = np.nanmean(columns / unit, axis=0)
        deviations = np.nanstd(columns / unit, axis=0)
        # A spread of a few roundings is that of a constant.
        constant = deviations <= 8 * np.finfo(data.dtype).eps * np.abs(means)
        return cls(kept, means * unit, np.where(constant, 1.0, deviations) * unit)

    @property
    def statistics(self) -> NDArray[np.float64]:
        """The mean of each column; NaN for those without values."""
        means = np.full(len(self.kept), np.nan)
        means[self.kept] = self.means
        return means

    def scaled(self, data: Matrix) -> NDArray[np.float64]:
        """Return the kept columns of a matrix, scaled."""
        return (data[:, self.kept].astype(np.float64) - self.means) / self.scales

    def unscaled(self, values: Matrix, cols: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return values in the unit of their columns, positions among those kept."""
        return values * self.scales[cols] + self.means[cols]
