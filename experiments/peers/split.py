"""One split as plain arrays, so that every package reads the same file. Needs NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Training and test entries, and features of rows and columns.

    Attributes
    ----------
    rows, cols, values : array, shape (nnz,)
        To fit.
    test_rows, test_cols, test_values : array, shape (k,)
        To predict.
    row_features, col_features : array, shapes (m, f) and (n, g)
        Without columns if there are none.
    """

    rows: Indices
    cols: Indices
    values: Reals
    test_rows: Indices
    test_cols: Indices
    test_values: Reals
    row_features: Reals
    col_features: Reals

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return len(self.row_features), len(self.col_features)

    def save(self, path: Path) -> None:
        """Write one file."""
        np.savez(path, **self.__dict__)

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read a file that `save` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in file.files})

    def errors(self, predictions: NDArray[np.floating]) -> tuple[float, float]:
        """Return RMSE and MAE on the test entries, predictions clipped to the range of ratings."""
        low, high = float(self.values.min()), float(self.values.max())
        e = np.clip(predictions.astype(np.float64), low, high) - self.test_values
        return float(np.sqrt(np.mean(e**2))), float(np.mean(np.abs(e)))
