"""Every accepted form of interactions, as vectors of row ids, column ids, values and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.estimators.files import read_file
from lowrank_opt.estimators.ids import Ids, as_ids
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import sparray, spmatrix

    Interactions: TypeAlias = (
        NDArray[np.generic]
        | Tensor
        | Sequence[Sequence[object]]
        | tuple[object, ...]
        | pd.DataFrame
        | spmatrix
        | sparray
        | Observations
        | str
        | PathLike[str]
    )
    Reals: TypeAlias = NDArray[np.generic] | Tensor | Sequence[float] | pd.Series


@dataclass(frozen=True, eq=False)
class Triplets:
    """Entries of a matrix, by ids.

    Parameters
    ----------
    rows, cols : array, shape (nnz,)
        Ids.
    values : array, shape (nnz,), or None
        float32 or float64.
    weights : array, shape (nnz,), or None
    shape : tuple of int or None
        If the ids are positions in a matrix of that shape.
    names : tuple of str or None
        Of the columns that held the ids.
    """

    rows: Ids
    cols: Ids
    values: NDArray[np.floating] | None = None
    weights: NDArray[np.floating] | None = None
    shape: tuple[int, int] | None = None
    names: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_pairs(pairs: Interactions) -> Triplets:
    """Return the index pairs of anything that `read_triplets` takes; values are not needed.

    Parameters
    ----------
    pairs : array, frame, list, sparse matrix, ...

    Raises
    ------
    ShapeError
        If there are not two columns.
    ObservationError
        If an id is missing.
    """
    return _read(pairs)


def read_triplets(
    data: Interactions, values: Reals | None = None, weights: Reals | None = None
) -> Triplets:
    """Return row ids, column ids, values and weights, whatever they come in.

    Parameters
    ----------
    data : one of the following
        With `values`: pairs of ids, as an array or tensor of shape (nnz, 2), a list of pairs, the
        first two columns of a frame (pandas, polars), or a tuple of two vectors.
        Without: a frame with three columns, a tuple of three vectors, a list of triples, a SciPy
        or torch sparse matrix (its stored entries, zeros too), a dense floating matrix with NaN,
        `Observations`, or the path of a .csv, .tsv, .parquet or .mtx file.
    values : array, shape (nnz,), optional
    weights : array, shape (nnz,), optional

    Raises
    ------
    ShapeError
        If shapes or lengths do not fit.
    ObservationError
        If something is missing or not finite, or there is no entry.
    DataError
        If a file cannot be read.
    """
    found = _read(data, alone=values is None)
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
    return _checked(found)


def as_finite(values: Reals, name: str) -> NDArray[np.floating]:
    """Return a vector of float32 or float64, all finite."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    x: NDArray[Any] = np.asarray(plain)
    if x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 1:
        raise ShapeError(f"{name} must be a vector; got shape {x.shape}")
    if x.dtype.kind not in "iuf":
        x = _as_float(x, name)
    x = x.astype(np.float32 if x.dtype.kind == "f" and x.dtype.itemsize <= 4 else np.float64)
    bad = ~np.isfinite(x)
    if bad.any():
        k = int(bad.argmax())
        raise ObservationError(
            f"{name} must be finite; got {int(bad.sum())} of {len(x)} NaN or infinity, the first "
            f"{float(x[k])!r} at position {k}: leave missing entries out"
        )
    return x


def _read(data: Interactions, *, alone: bool = True) -> Triplets:
    if isinstance(data, str | PathLike):
        data = read_file(data)
    if isinstance(data, Observations):
        return _from_observations(data)
    if isinstance(data, Tensor):
        return _from_tensor(data, alone=alone)
    if hasattr(data, "tocoo"):
        return _from_scipy(cast("spmatrix", data))
    if hasattr(data, "columns"):
        return _from_frame(cast("pd.DataFrame", data))
    if isinstance(data, tuple) and _are_vectors(data):
        return _from_columns(data)
    if isinstance(data, list | tuple):
        return _from_lines(data)
    return _from_array(np.asarray(data), alone=alone)


def _from_observations(data: Observations) -> Triplets:
    weights = None if data.weights is None else data.weights.cpu().numpy()
    i, j, values = (x.cpu().numpy() for x in (data.rows, data.cols, data.values))
    return Triplets(i, j, values, weights, data.shape)


def _from_tensor(data: Tensor, *, alone: bool) -> Triplets:
    if data.layout is torch.strided:
        return _from_array(data.detach().cpu().numpy(), alone=alone)
    coo = data.detach().cpu().to_sparse_coo().coalesce()
    if coo.sparse_dim() != 2:
        raise ShapeError(f"a sparse tensor must have two axes; got {tuple(data.shape)}")
    i, j = coo.indices().numpy()
    return Triplets(i, j, as_finite(coo.values(), "values"), None, (data.shape[0], data.shape[1]))


def _from_scipy(data: spmatrix) -> Triplets:
    coo = data.tocoo()
    i, j = coo.row.astype(np.int64), coo.col.astype(np.int64)
    return Triplets(i, j, as_finite(coo.data, "values"), None, coo.shape)


def _from_frame(data: pd.DataFrame) -> Triplets:
    names = [str(x) for x in data.columns]
    _check_width(len(names), "a frame")
    # By name: pandas and polars agree on nothing else. The labels themselves may be no strings.
    i, j, *rest = (data[x].to_numpy() for x in list(data.columns)[:3])
    value = as_finite(rest[0], names[2]) if rest else None
    named = all(isinstance(x, str) for x in data.columns)
    pair = (names[0], names[1]) if named else None
    return Triplets(as_ids(i, names[0]), as_ids(j, names[1]), value, names=pair)


def _from_columns(data: Sequence[Any]) -> Triplets:
    _check_width(len(data), "a tuple of vectors")
    i, j, *rest = data
    value = as_finite(rest[0], "values") if rest else None
    return Triplets(as_ids(i, "rows"), as_ids(j, "cols"), value)


def _from_lines(data: Sequence[Any]) -> Triplets:
    lines = list(data)
    if not all(isinstance(line, Sequence | np.ndarray | Tensor) for line in lines):
        return _from_array(np.asarray(lines), alone=False)
    widths = {len(line) for line in lines} or {2}
    if len(widths) > 1:
        raise ShapeError(f"pairs must all have one length; got lengths {sorted(widths)}")
    _check_width(min(widths), "a list")
    return _from_columns([list(x) for x in zip(*lines, strict=True)] or [[], []])


def _from_array(data: NDArray[Any], *, alone: bool) -> Triplets:
    if data.ndim != 2:
        raise ShapeError(
            f"index pairs must be an array of shape (n, 2); got shape {data.shape}. "
            "Reshape your data: one line for each pair"
        )
    if alone and data.dtype.kind == "f" and (data.shape[1] != 2 or np.isnan(data).any()):
        i, j = np.nonzero(~np.isnan(data))
        return Triplets(i, j, as_finite(data[i, j], "values"), None, (data.shape[0], data.shape[1]))
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
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(f"pairs, y and sample_weight must have one length; got {text}")
    if len(found) == 0:
        raise ObservationError("at least one entry must be observed; got 0 sample(s)")
    return found


def _are_vectors(data: tuple[object, ...]) -> bool:
    # A tuple of tuples is a list of pairs.
    return all(isinstance(x, list) or getattr(x, "ndim", 0) == 1 for x in data)


def _as_float(x: NDArray[Any], name: str) -> NDArray[np.floating]:
    try:
        return x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{name} must be real numbers; got {x.dtype}: {error}") from error
