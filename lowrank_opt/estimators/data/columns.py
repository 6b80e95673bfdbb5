"""Means and scales of columns, from what is observed of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, OptionError
from lowrank_opt.tables.arrays import as_array, mask_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

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


def is_nan(value: object) -> bool:
    """Whether a marker of missing values is NaN, or pandas.NA."""
    return type(value).__name__ == "NAType" or value != value


def check_numbers(data: object) -> None:
    """Raise ObservationError for columns of dates or durations, and for named fields.

    Where some columns are numbers, NumPy says only that the types have nothing in common.
    """
    table = cast("Any", data)
    if getattr(getattr(table, "dtype", None), "names", None):
        raise ObservationError(
            f"a matrix of numbers is imputed; got an array of fields {table.dtype.names}: "
            "pass a frame, or its columns side by side"
        )
    columns, dtypes = getattr(table, "columns", ()), getattr(table, "dtypes", ())
    for name, dtype in zip(columns, list(dtypes) if len(columns) else (), strict=True):
        if str(dtype).lower().startswith(("date", "time", "duration", "period", "interval")):
            raise ObservationError(
                f"a matrix of numbers is imputed; got column {name!r} of {dtype}: leave it out, or "
                "turn it into numbers of one unit"
            )


def without_masks(data: object) -> object:
    """Return data in which what is masked, None or pandas.NA is NaN; the same if there is none."""
    if isinstance(data, np.ma.MaskedArray | Tensor):
        array = as_array(data)
        mask = mask_of(array)
        plain = np.asarray(array)
        wide = plain.dtype if plain.dtype.kind == "f" else np.float64
        return plain if mask is None else np.where(mask, np.nan, plain.astype(wide))
    if hasattr(data, "isna") and hasattr(data, "iloc"):
        frame = cast("Any", data)
        # Frames of pandas with NA have no floating dtype by themselves.
        holes = frame.isna() & (frame.dtypes.map(str).isin(["object"]))
        return frame.mask(holes, np.nan).infer_objects() if holes.to_numpy().any() else data
    if isinstance(data, np.ndarray) and data.dtype == object:
        holes = np.array([x is None or type(x).__name__ == "NAType" for x in data.ravel()])
        return np.where(holes.reshape(data.shape), np.nan, data) if holes.any() else data
    return data


def column_bounds(low: ArrayLike, high: ArrayLike, columns: int) -> tuple[Matrix, Matrix]:
    """Return the bounds of imputed values of each column.

    Raises
    ------
    OptionError
        If they are not one or one a column, or do not ascend.
    """
    try:
        lower, upper = (
            np.broadcast_to(np.asarray(x, dtype=np.float64), (columns,)) for x in (low, high)
        )
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"min_value and max_value must be numbers, or {columns} of them; got {error}"
        ) from error
    if not (lower <= upper).all():
        raise OptionError("min_value must be at most max_value; got more in some column")
    return lower, upper
