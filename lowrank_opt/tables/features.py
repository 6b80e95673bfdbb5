"""Side information in frames, arrays and sparse matrices of every library, as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.arrays import as_array, as_reals, mask_of
from lowrank_opt.tables.frames import is_frame

if TYPE_CHECKING:
    from lowrank_opt.sparse import SparseMatrix

    Matrix: TypeAlias = NDArray[np.floating] | SparseMatrix


def as_features(data: object, name: str = "features") -> Matrix:
    """Return features as a dense or a sparse matrix of float64.

    Parameters
    ----------
    data : frame, array, tensor or sparse matrix, shape (m, f)
        Of frames, numbers and truth values are taken as they are; columns of text and of
        categories become one column of ones and zeros for each value.
    name : str
        For messages.

    Raises
    ------
    ShapeError
        If there are not two axes.
    ObservationError
        If a feature is missing, which is said by its column, or no number.

    Examples
    --------
    >>> import pandas as pd
    >>> as_features(pd.DataFrame({"age": [20, 30], "job": ["cook", "poet"]}))
    array([[20.,  1.,  0.],
           [30.,  0.,  1.]])
    """
    if is_frame(data):
        return _from_frame(data, name)
    if isinstance(data, Tensor) and data.layout is not _strided():
        return _checked_sparse(_from_torch(data), name)
    if hasattr(data, "tocoo"):
        return _checked_sparse(data, name)
    x = as_array(data)
    if x.ndim != 2:
        raise ShapeError(f"{name} must be a matrix, a line for each row; got ndim={x.ndim}")
    mask = mask_of(x)
    reals = as_reals(np.asarray(x), name).astype(np.float64)
    missing = np.isnan(reals) if mask is None else mask | np.isnan(reals)
    if missing.any():
        column = int(missing.any(axis=0).argmax())
        raise _missing(name, f"{column}", int(missing[:, column].sum()))
    return reals


def _strided() -> object:
    import torch

    return torch.strided


def _from_frame(data: object, name: str) -> NDArray[np.floating]:
    import narwhals as nw

    native: Any = data
    if hasattr(native, "iloc"):
        # Names of pandas need not be text.
        native = native.set_axis([str(label) for label in native.columns], axis=1)
    frame: Any = nw.from_native(native)
    frame = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
    parts: list[NDArray[np.floating]] = []
    for title in frame.columns:
        column = frame[title]
        x = column.to_numpy()
        missing = [v is None or v != v or type(v).__name__ == "NAType" for v in x.tolist()]
        if column.null_count() > 0 or any(missing):
            raise _missing(name, repr(title), max(int(column.null_count()), sum(missing)))
        numeric = column.dtype.is_numeric() or column.dtype == nw.Boolean
        parts.append(x.astype(np.float64)[:, None] if numeric else _indicators(x, title, name))
    if not parts:
        raise ShapeError(f"{name} must have a column at least; got a frame without any")
    return np.concatenate(parts, axis=1)


def _indicators(x: NDArray[Any], title: str, name: str) -> NDArray[np.floating]:
    values = list(dict.fromkeys(x.tolist()))
    if not all(isinstance(v, str | bool | int | bytes) for v in values):
        raise ObservationError(
            f"{name} must be numbers or categories; column {title!r} has "
            f"{type(values[0]).__name__}: convert it"
        )
    position = {v: k for k, v in enumerate(values)}
    return np.eye(len(values))[[position[v] for v in x.tolist()]]


def _from_torch(data: Tensor) -> object:
    from scipy.sparse import coo_array

    coo = data.detach().cpu().to_sparse_coo().coalesce()
    if coo.sparse_dim() != 2:
        raise ShapeError(f"features must be a matrix; got shape {tuple(data.shape)}")
    i, j = coo.indices().numpy()
    return coo_array((coo.values().double().numpy(), (i, j)), shape=tuple(data.shape))


def _checked_sparse(data: object, name: str) -> SparseMatrix:
    matrix = cast("Any", data).tocsr().astype(np.float64)
    missing = np.isnan(matrix.data)
    if missing.any():
        column = int(matrix.indices[missing][0])
        raise _missing(name, f"{column}", int((matrix.indices[missing] == column).sum()))
    return matrix


def _missing(name: str, column: str, count: int) -> ObservationError:
    return ObservationError(
        f"{name} must be finite and not all zero; column {column} has {count} missing: drop or "
        "fill what is missing"
    )
