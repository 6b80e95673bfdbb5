"""Frames of every make, through narwhals: pandas, polars, pyarrow, and those that are lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.extras import extra
from lowrank_opt.tables.arrays import as_finite, as_reals
from lowrank_opt.tables.columns import by_name, choose
from lowrank_opt.tables.ids import as_ids
from lowrank_opt.tables.series import vector
from lowrank_opt.tables.triplets import Triplets

if TYPE_CHECKING:
    import pandas as pd


def is_frame(data: object) -> bool:
    """Whether this is a table with named columns: loads nothing."""
    names = ("columns", "column_names", "collect_schema", "to_table", "read_all")
    # Asked of the class: a lazy frame would have to find its columns out.
    return any(hasattr(type(data), name) for name in names)


def from_frame(data: object, *, values: bool | None) -> Triplets:
    """Return the entries of a frame: three columns, or a matrix with named rows and columns.

    Parameters
    ----------
    data : frame
        One whose columns have a name as a whole, as `DataFrame.pivot` and `pandas.crosstab` give
        it, is a matrix; its gaps are missing.
    values : bool or None
        Whether a column of values is needed, must not be taken, or is taken if there is one.

    Raises
    ------
    ShapeError
        If nothing says which columns are meant.
    """
    if _is_pivot(data):
        return _from_pivot(cast("Any", data))
    _refuse_sparse(data)
    names, column = _columns(data)
    indexed = None not in _index_names(data)
    try:
        chosen = choose(names, values=values, what="a frame")
    except ShapeError:
        if not indexed:
            raise
        # Ids may be in the index, which has names then, as after set_index.
        return from_frame(cast("Any", data).reset_index(), values=values)
    if indexed and chosen.value is not None and chosen.reason == "the first":
        raise ObservationError(
            f"a frame must be a matrix or a list of triplets; got an index named "
            f"{_index_names(data)[0]!r} and the columns {names}, which could be both: pass "
            "frame.stack() for the matrix, frame.reset_index(drop=True) for the triplets"
        )
    i, j = column(chosen.row), column(chosen.col)
    value = None if chosen.value is None else as_finite(column(chosen.value), names[chosen.value])
    row, col = names[chosen.row], names[chosen.col]
    labels = getattr(data, "columns", names) if hasattr(data, "iloc") else names
    pair = (row, col) if all(isinstance(name, str) for name in labels) else None
    return Triplets(as_ids(i, row), as_ids(j, col), value, names=pair)


def from_series(data: object) -> Triplets:
    """Return the values of a series of pandas whose index has two levels, row and column ids."""
    series: Any = data
    rows, cols = (series.index.get_level_values(k) for k in (0, 1))
    names = tuple(series.index.names)
    pair = (str(names[0]), str(names[1])) if None not in names else None
    values = as_finite(series.to_numpy(), "values")
    return Triplets(as_ids(rows, "rows"), as_ids(cols, "cols"), values, names=pair)


def is_indexed_series(data: object) -> bool:
    """Whether this is a series of pandas with two levels of index."""
    return not is_frame(data) and getattr(getattr(data, "index", None), "nlevels", 1) == 2


def check_same_order(data: object, beside: object, name: str) -> None:
    """Raise if pandas has what comes beside a frame under the same index in another order.

    Raises
    ------
    ObservationError
        Lines could belong together by their place, or by their index.
    """
    if not (hasattr(data, "iloc") and hasattr(beside, "iloc")):
        return
    ours, theirs = cast("Any", data).index, cast("Any", beside).index
    if ours.equals(theirs) or len(ours) != len(theirs) or not ours.is_unique:
        return
    if bool(ours.isin(theirs).all()) and theirs.is_unique:
        raise ObservationError(
            f"{name} must have the lines of the frame; got its index in another order, so that "
            f"lines could belong together by place or by index: pass {name}.loc[frame.index], or "
            f"{name}.to_numpy()"
        )


def _index_names(data: object) -> list[object]:
    index = getattr(data, "index", None) if hasattr(data, "iloc") else None
    return [None] if index is None else list(index.names)


def _refuse_sparse(data: object) -> None:
    """Raise ObservationError if all columns are sparse: a matrix, or three columns."""
    if not hasattr(data, "iloc"):
        return
    frame: Any = data
    if len(frame.columns) > 0 and all(str(x).startswith("Sparse") for x in frame.dtypes):
        raise ObservationError(
            "a frame must have columns of ids and values; got sparse ones alone, which could be a "
            "matrix as well: pass frame.sparse.to_coo() for that, frame.sparse.to_dense() for the "
            "columns"
        )


def _columns(data: object) -> tuple[list[str], Any]:
    """Return the names of the columns, and a function from positions to vectors."""
    if hasattr(data, "iloc"):
        # pandas has what others lack: names that are no text, or come twice.
        frame: Any = data
        if getattr(frame.columns, "nlevels", 1) > 1:
            raise ShapeError(
                "columns of a frame must have one level of names; got "
                f"{frame.columns.nlevels}: name the values of the pivot, or use reset_index"
            )
        names = [str(name) for name in frame.columns]
        if len(set(names)) < len(names):
            raise ShapeError(f"columns of a frame must have distinct names; got {names[:8]}")
        return names, lambda k: frame.iloc[:, k].to_numpy()
    import narwhals as nw

    try:
        frame = nw.from_native(cast("Any", _as_table(data)))
        eager: Any = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
        names = list(eager.columns)
    except nw.exceptions.DuplicateError as error:
        raise ShapeError(f"columns of a frame must have distinct names; {error}") from error
    except TypeError as error:
        raise ObservationError(
            f"a frame must be one that narwhals knows; got {type(data).__name__}: convert it to "
            "pandas, polars or pyarrow"
        ) from error
    return names, lambda k: vector(eager[names[k]])


def _as_table(data: object) -> object:
    """Return what pyarrow has beside tables as one: batches, readers, data sets, scanners."""
    for name in ("to_table", "read_all"):
        if (read := getattr(data, name, None)) is not None:
            return read()
    if type(data).__name__ == "RecordBatch":
        with extra("parquet"):
            import pyarrow as pa
        return pa.Table.from_batches([data])
    return data


def _is_pivot(data: object) -> bool:
    columns = getattr(data, "columns", None) if hasattr(data, "iloc") else None
    return getattr(columns, "name", None) is not None


def _from_pivot(data: pd.DataFrame) -> Triplets:
    names = [str(name) for name in data.columns]
    if by_name(names, values=False) is not None:
        raise ObservationError(
            "a frame must be a matrix or a list of triplets; got columns with the names "
            f"{names[:8]} and {data.columns.name!r} for all of them, which could be both: pass "
            "frame.stack() for the matrix, frame.rename_axis(columns=None) for the triplets"
        )
    there = data.notna().to_numpy()
    dense = np.full(there.shape, np.nan)
    for k in range(there.shape[1]):
        dense[there[:, k], k] = as_reals(data.iloc[:, k].to_numpy()[there[:, k]], names[k])
    i, j = np.nonzero(there)
    pair = (data.index.name, data.columns.name)
    texts = (str(pair[0]), str(pair[1])) if None not in pair else None
    rows, cols = as_ids(data.index.to_numpy(), "rows"), as_ids(data.columns.to_numpy(), "columns")
    return Triplets(rows[i], cols[j], as_finite(dense[i, j], "values"), names=texts)
