"""Columns of polars, pyarrow and narwhals as vectors of NumPy that lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_opt.errors import ObservationError
from lowrank_opt.extras import extra

if TYPE_CHECKING:
    import narwhals as nw
    from numpy.typing import NDArray

_LIBRARIES = frozenset({"polars", "pyarrow", "narwhals"})
# What NumPy has too, and without a time zone dates. All else stays what the library calls it: text
# would lose the zeros at its end, decimal numbers and UUIDs their type, dates their zone.
_KINDS = frozenset({"Boolean", "Date", "Datetime", "Duration", "Float32", "Float64"})
_INTEGERS = frozenset(f"{sign}Int{size}" for sign in ("", "U") for size in (8, 16, 32, 64))


def is_column(data: object) -> bool:
    """Whether this is a column of one of these libraries: loads nothing."""
    kind = type(data)
    frame = hasattr(kind, "columns") or hasattr(kind, "column_names")
    known = kind.__module__.partition(".")[0] in _LIBRARIES
    return known and hasattr(kind, "to_numpy") and not frame


def column_of(data: object) -> NDArray[Any]:
    """Return the vector of a column; integers with gaps stay integers and None.

    Raises
    ------
    ObservationError
        If narwhals does not know it.
    """
    import narwhals as nw

    if type(data).__module__.startswith("pyarrow") and not hasattr(data, "chunks"):
        with extra("parquet"):
            import pyarrow as pa
        data = pa.chunked_array([data])
    try:
        return vector(nw.from_native(data, series_only=True))  # pyright: ignore
    except TypeError as error:
        raise ObservationError(
            f"a column must be one that narwhals knows; got {type(data).__name__}: convert it to "
            "a list"
        ) from error


def vector(column: nw.Series[Any]) -> NDArray[Any]:
    """Return a column of narwhals likewise."""
    kind = type(column.dtype).__name__
    zone = getattr(column.dtype, "time_zone", None)
    exact = kind in _KINDS or kind in _INTEGERS
    if exact and zone is None and column.null_count() == 0:
        return column.to_numpy()
    items = np.empty(len(column), dtype=object)
    for k, item in enumerate(column.to_list()):
        items[k] = item
    return items
