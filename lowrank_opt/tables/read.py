"""Every accepted form of interactions, as vectors of row ids, column ids, values and weights."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.arrays import Array, as_array, as_finite
from lowrank_opt.tables.columns import choose
from lowrank_opt.tables.files import read_file
from lowrank_opt.tables.frames import (
    check_same_order,
    from_frame,
    from_series,
    is_frame,
    is_indexed_series,
)
from lowrank_opt.tables.ids import as_ids
from lowrank_opt.tables.matrices import (
    as_dense,
    from_dense,
    from_observations,
    from_scipy,
    from_torch_sparse,
)
from lowrank_opt.tables.triplets import Triplets

if TYPE_CHECKING:
    import torch
    from scipy.sparse import spmatrix

    from lowrank_opt.tables.triplets import Interactions, Reals


# What has an order, but no positions.
_ORDERED = (Iterator, deque, MappingView)


def read_pairs(pairs: Interactions, *, known: Callable[[str, str], bool] | None = None) -> Triplets:
    """Return the index pairs of anything that `read_triplets` takes; values are not needed.

    An array, a tensor or a list is one pair a line, whatever it holds.

    Parameters
    ----------
    pairs : array, frame, list, sparse matrix, path, ...
    known : callable, optional
        Whether two ids are known; for files, see `DelimitedFile`.

    Raises
    ------
    ShapeError
        If there are not two columns.
    ObservationError
        If an id is missing.
    """
    return _read(pairs, values=None, alone=False, known=known)


def read_triplets(
    data: Interactions, values: Reals | None = None, weights: Reals | None = None
) -> Triplets:
    """Return row ids, column ids, values and weights, whatever they come in.

    Parameters
    ----------
    data : one of the following
        With `values`: pairs of ids, as an array or tensor of shape (nnz, 2), a list of pairs, a
        frame of two columns (of every library that narwhals knows), a tuple of two vectors, or a
        dictionary of them.
        Without: a frame of three columns, or with the usual names; one that `pivot` made; a tuple
        of three vectors; a list of triples, or of dictionaries with names of columns; an array or
        tensor of shape (nnz, 3) whose first two columns are whole numbers; a SciPy or torch sparse
        matrix (its stored entries, zeros too); another dense floating matrix with NaN, or masked;
        `Observations`; or the path of a file, see `lowrank_opt.tables.files.read_file`.
    values : array, shape (nnz,), optional
    weights : array, shape (nnz,), optional

    Raises
    ------
    ShapeError
        If shapes or lengths do not fit, or nothing says which columns are meant.
    ObservationError
        If something is missing or not finite, there is no entry, or the data could mean two things.
    DataError
        If a file cannot be read.

    Examples
    --------
    >>> found = read_triplets(np.array([[7.0, 1.0, 4.5], [9.0, 1.0, 3.0]]))
    >>> found.rows.tolist(), found.cols.tolist(), found.values.tolist()
    ([7, 9], [1, 1], [4.5, 3.0])
    """
    values, weights = (list(x) if isinstance(x, Iterator) else x for x in (values, weights))
    for name, beside in (("y", values), ("sample_weight", weights)):
        check_same_order(data, beside, name)
    found = _read(data, values=values is None or None, alone=values is None)
    if values is not None:
        if found.values is not None:
            raise ShapeError(
                "values come as y or with the pairs; got both: select the two columns of ids"
            )
        found = replace(found, values=as_finite(values, "y"))
    if found.values is None:
        raise ObservationError(
            "values are needed besides pairs of ids; got none: pass y, or a third column"
        )
    if weights is not None:
        found = replace(found, weights=as_finite(weights, "sample_weight"))
    return _checked(replace(found, device=_device_of(values, data)))


def _device_of(*data: object) -> torch.device | None:
    """Return where the first tensor is: given, a column, or the values of observations."""
    for x in data:
        inner = x.values if hasattr(x, "pattern") and hasattr(x, "csr") else x  # pyright: ignore
        columns = inner.values() if isinstance(inner, Mapping) else inner
        parts = columns if isinstance(columns, tuple) else (columns,)
        for part in parts:
            if isinstance(part, Tensor):
                return part.device
    return None


def _read(
    data: Interactions,
    *,
    values: bool | None,
    alone: bool,
    known: Callable[[str, str], bool] | None = None,
) -> Triplets:
    if isinstance(data, str | PathLike):
        return read_file(data, values=values, known=known)
    if hasattr(data, "pattern") and hasattr(data, "csr"):
        return from_observations(cast("Any", data))
    if isinstance(data, Tensor) and data.layout is not _strided():
        return from_torch_sparse(data)
    if hasattr(data, "tocoo"):
        return from_scipy(cast("spmatrix", data))
    if is_frame(data):
        return from_frame(data, values=values)
    if getattr(data, "nlevels", 1) == 2:  # the index of a frame of pandas
        return from_frame(cast("Any", data).to_frame(index=False), values=values)
    if is_indexed_series(data):
        return from_series(data)
    if hasattr(data, "readline"):
        raise ShapeError(
            f"a file must come by its path; got an open one, {type(data).__name__}: pass the path"
        )
    if isinstance(data, Mapping):
        return _from_mapping(data, values=values)
    if isinstance(data, (*_ORDERED, Set)):
        data = cast("Sequence[Sequence[object]]", list(data))
    if isinstance(data, list | tuple) and data and all(map(_is_record, data)):
        return _from_mapping(_columns_of([*map(_as_mapping, data)]), values=values)
    if isinstance(data, tuple):
        data = tuple(map(_listed, data))
    if isinstance(data, tuple) and _are_vectors(data):
        return _from_columns(data)
    if isinstance(data, list | tuple):
        return _from_lines(data, alone=alone)
    return _from_array(as_array(data), alone=alone)


def _strided() -> object:
    import torch

    return torch.strided


def _from_mapping(data: Mapping[Any, Any], *, values: bool | None) -> Triplets:
    names = list(data)
    if not all(isinstance(name, str) for name in names):
        raise ShapeError(
            f"a dictionary must have names of columns; got keys such as {names[:2]!r}: pass "
            "[(row, column, value), ...]"
        )
    data = {name: _listed(column) for name, column in data.items()}
    chosen = choose(names, values=values, what="a dictionary")
    i, j = names[chosen.row], names[chosen.col]
    value = None
    if chosen.value is not None:
        value = as_finite(data[names[chosen.value]], names[chosen.value])
    return Triplets(as_ids(data[i], i), as_ids(data[j], j), value, names=(i, j))


def _listed(column: object) -> Any:  # noqa: ANN401
    """Return what has an order, but no positions, as a list: an iterator, a queue, a view."""
    return [*cast("Any", column)] if isinstance(column, _ORDERED) else column


def _is_record(line: object) -> bool:
    return isinstance(line, Mapping) or hasattr(line, "_fields")


def _as_mapping(line: object) -> Mapping[Any, Any]:
    """Return a dictionary, or a named tuple as one."""
    return line if isinstance(line, Mapping) else cast("Any", line)._asdict()


def _columns_of(records: Sequence[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    """Return the columns of records, as JSON and `DataFrame.to_dict` have them."""
    names = records[0].keys()
    for k, record in enumerate(records):
        if record.keys() != names:
            raise ShapeError(
                f"records must all have the same names; got {list(record)} at position {k} and "
                f"{list(names)} at the first: fill in what is missing"
            )
    return {name: [record[name] for record in records] for name in names}


def _from_columns(data: Sequence[Any]) -> Triplets:
    _check_width(len(data), "a tuple of vectors")
    i, j, *rest = data
    value = as_finite(rest[0], "values") if rest else None
    return Triplets(as_ids(i, "rows"), as_ids(j, "cols"), value)


def _from_lines(data: Sequence[Any], *, alone: bool) -> Triplets:
    lines = list(data)
    texts = [line for line in lines if isinstance(line, str | bytes)]
    if texts:
        raise ShapeError(
            f"each pair must be a sequence of a row id and a column id; got the text "
            f"{texts[0]!r}: pass [(row, column), ...], or a tuple of vectors"
        )
    if lines and all(isinstance(line, np.void) for line in lines):
        return _from_array(np.array(lines), alone=alone)
    if not all(isinstance(line, Sequence | np.ndarray | Tensor) for line in lines):
        return _from_array(as_array(lines), alone=False)
    widths = {len(line) for line in lines} or {2}
    if len(widths) > 1:
        raise ShapeError(f"pairs must all have one length; got lengths {sorted(widths)}")
    width = min(widths)
    if width not in (2, 3) and alone and _are_numbers(lines):
        gaps = [[np.nan if x is None else x for x in line] for line in lines]
        return _from_array(as_array(gaps), alone=alone)
    _check_width(width, "a list")
    if len(lines) == width and all(_axes(line) == 1 for line in lines):
        raise ShapeError(
            f"a list of {width} arrays of {width} numbers could be lines or columns: stack them, "
            "np.stack(list), if each is an entry; pass a tuple if each is a column"
        )
    return _from_columns([list(x) for x in zip(*lines, strict=True)] or [[], []])


def _are_numbers(lines: list[Any]) -> bool:
    return all(isinstance(x, float | int | np.floating) or x is None for x in lines[0])


def _from_array(data: Array, *, alone: bool) -> Triplets:
    if data.dtype.names is not None and data.ndim == 1:
        fields = {name: data[name] for name in data.dtype.names}
        return _from_mapping(fields, values=None if alone else False)
    if data.ndim != 2:
        raise ShapeError(
            f"index pairs must be an array of shape (n, 2); got shape {data.shape}. "
            "Reshape your data: one line for each pair"
        )
    if data.dtype.names is not None:
        raise ShapeError("an array of named fields must be a vector; got a matrix: pass one line")
    if alone and (dense := as_dense(data)) is not None:
        return from_dense(dense)
    _check_width(data.shape[1], "an array")
    return _from_columns([data[:, k] for k in range(data.shape[1])])


def _check_width(width: int, what: str) -> None:
    if width not in (2, 3):
        raise ShapeError(
            f"index pairs have 2 columns, row and column id; got {what} of {width} feature(s): "
            "select the two columns first"
        )


def _checked(found: Triplets) -> Triplets:
    parts = {"pairs": found.rows, "y": found.values, "sample_weight": found.weights}
    sizes = {name: len(x) for name, x in parts.items() if x is not None}
    if len(set(sizes.values())) > 1 or len(found.rows) != len(found.cols):
        sizes |= {} if len(found.rows) == len(found.cols) else {"columns": len(found.cols)}
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(f"pairs, y and sample_weight must have one length; got {text}")
    if len(found) == 0:
        raise ObservationError("at least one entry must be observed; got 0 sample(s)")
    return found


def _are_vectors(data: tuple[object, ...]) -> bool:
    # A tuple of tuples is a list of pairs.
    return all(isinstance(x, list | range | array) or _axes(x) == 1 for x in data)


def _axes(x: object) -> int:
    if hasattr(x, "ndim"):
        return int(cast("Any", x).ndim)
    # Columns of pyarrow have a length, but no axes.
    return 1 if hasattr(x, "to_numpy") else 0
