"""Side information in frames, arrays and sparse matrices of every library, as numbers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.arrays import as_array, as_reals, mask_of
from lowrank_opt.tables.frames import is_frame
from lowrank_opt.tables.series import vector

if TYPE_CHECKING:
    from lowrank_opt.sparse import SparseMatrix

    Matrix: TypeAlias = NDArray[np.floating] | SparseMatrix


@dataclass(frozen=True)
class Encoding:
    """How features became numbers, so that those of others become the same ones.

    Parameters
    ----------
    width : int
        How many numbers.
    columns : tuple of (str, tuple or None), optional
        Of a frame: the names of its columns, with the categories of those that hold some. None of
        an array.
    """

    width: int
    columns: tuple[tuple[str, tuple[Hashable, ...] | None], ...] | None = None


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
    return encoded(data, name)[0]


def encoded(
    data: object, name: str = "features", like: Encoding | None = None
) -> tuple[Matrix, Encoding]:
    """Return features as `as_features`, and how they became numbers.

    Parameters
    ----------
    data : frame, array, tensor or sparse matrix, shape (m, f)
    name : str
    like : Encoding, optional
        That of features which these must match: columns of a frame by their names, in any order,
        and categories by their values.

    Raises
    ------
    ShapeError, ObservationError
        As `as_features`; or if columns, their number, kinds or categories are others.

    Examples
    --------
    >>> import pandas as pd
    >>> known = pd.DataFrame({"age": [20, 30], "job": ["cook", "poet"]})
    >>> encoded(pd.DataFrame({"job": ["poet"], "age": [40]}), like=encoded(known)[1])[0]
    array([[40.,  0.,  1.]])
    """
    if is_frame(data):
        return _from_frame(data, name, like)
    if like is not None and like.columns is not None:
        titles = [title for title, _ in like.columns]
        raise ObservationError(
            f"{name} must be a frame with the columns fitted, {titles}; got "
            f"{type(data).__name__}: name them"
        )
    matrix = _from_array(data, name)
    _check_width(matrix.shape[1], like, name)
    return matrix, Encoding(matrix.shape[1])


def _from_array(data: object, name: str) -> Matrix:
    if isinstance(data, Tensor) and data.layout is not _strided():
        return _checked_sparse(_from_torch(data), name)
    if hasattr(data, "tocoo"):
        return _checked_sparse(data, name)
    x = as_array(data)
    if x.ndim != 2:
        raise ShapeError(f"{name} must be a matrix, a line for each row; got ndim={x.ndim}")
    mask = mask_of(x)
    reals = as_reals(np.asarray(x), name).astype(np.float64)
    missing = ~np.isfinite(reals) if mask is None else mask | ~np.isfinite(reals)
    if missing.any():
        column = int(missing.any(axis=0).argmax())
        raise _missing(name, f"{column}", int(missing[:, column].sum()))
    return reals


def _check_width(width: int, like: Encoding | None, name: str) -> None:
    if like is not None and width != like.width:
        raise ShapeError(
            f"{name} must have {like.width} columns, as those fitted; got {width}: pass the same "
            "ones, in the same order"
        )


def _strided() -> object:
    import torch

    return torch.strided


def _from_frame(
    data: object, name: str, like: Encoding | None
) -> tuple[NDArray[np.floating], Encoding]:
    import narwhals as nw

    native: Any = data
    if hasattr(native, "iloc"):
        # Names of pandas need not be text.
        native = native.set_axis([str(label) for label in native.columns], axis=1)
        if len(set(native.columns)) < native.shape[1]:
            raise ShapeError(
                f"{name} must have columns of distinct names; got {list(native.columns)[:20]}"
            )
    try:
        frame: Any = nw.from_native(native)
        frame = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
    except nw.exceptions.DuplicateError as error:
        raise ShapeError(f"{name} must have columns of distinct names; {error}") from error
    fitted = None if like is None else like.columns
    if fitted is not None:
        _check_names(frame.columns, [title for title, _ in fitted], name)
    asked = dict(fitted or ())
    parts: list[NDArray[np.floating]] = []
    columns: list[tuple[str, tuple[Hashable, ...] | None]] = []
    for title in asked or frame.columns:
        column = frame[title]
        x = vector(column)
        missing = [v is None or v != v or type(v).__name__ == "NAType" for v in x.tolist()]
        numeric = column.dtype.is_numeric() or column.dtype == nw.Boolean
        count = max(int(column.null_count()), sum(missing))
        if count == 0 and numeric:
            count = int((~np.isfinite(x.astype(np.float64))).sum())
        if count > 0:
            raise _missing(name, repr(title), count)
        known = _categories(x, title, name) if not numeric and title not in asked else None
        known = asked.get(title, known)
        if known is None and not numeric:
            raise ObservationError(
                f"{name} must be of the kinds fitted; column {title!r} has {x.dtype} where there "
                "were numbers: convert it"
            )
        parts.append(
            x.astype(np.float64)[:, None] if known is None else _indicators(x, known, title, name)
        )
        columns.append((title, known))
    if not parts:
        raise ShapeError(f"{name} must have a column at least; got a frame without any")
    matrix = np.concatenate(parts, axis=1)
    if fitted is None:
        _check_width(matrix.shape[1], like, name)
    return matrix, Encoding(matrix.shape[1], tuple(columns))


def _check_names(names: list[str], fitted: list[str], name: str) -> None:
    lacking = [x for x in fitted if x not in names]
    foreign = [x for x in names if x not in fitted]
    if lacking or foreign:
        fault = f"no {lacking[0]!r}" if lacking else f"{foreign[0]!r} besides"
        raise ShapeError(
            f"{name} must have the columns fitted, {fitted[:20]}, in any order; got {fault}: "
            "pass the same ones"
        )


def _categories(x: NDArray[Any], title: str, name: str) -> tuple[Hashable, ...]:
    values = tuple(dict.fromkeys(x.tolist()))
    if not all(isinstance(v, str | bool | int | bytes) for v in values):
        raise ObservationError(
            f"{name} must be numbers or categories; column {title!r} has "
            f"{type(values[0]).__name__}: convert it"
        )
    return values


def _indicators(
    x: NDArray[Any], known: tuple[Hashable, ...], title: str, name: str
) -> NDArray[np.floating]:
    position = {v: k for k, v in enumerate(known)}
    items = x.tolist()
    strange = next((v for v in items if v not in position), None)
    if strange is not None:
        raise ObservationError(
            f"{name} must have categories that were fitted; column {title!r} has {strange!r}, "
            f"which is none of {list(known[:20])}: use one of them, or fit again"
        )
    return np.eye(len(known))[[position[v] for v in items]]


def _from_torch(data: Tensor) -> object:
    from scipy.sparse import coo_array

    coo = data.detach().cpu().to_sparse_coo().coalesce()
    if coo.sparse_dim() != 2:
        raise ShapeError(f"features must be a matrix; got shape {tuple(data.shape)}")
    i, j = coo.indices().numpy()
    return coo_array((coo.values().double().numpy(), (i, j)), shape=tuple(data.shape))


def _checked_sparse(data: object, name: str) -> SparseMatrix:
    matrix = cast("Any", data).tocsr().astype(np.float64)
    missing = ~np.isfinite(matrix.data)
    if missing.any():
        column = int(matrix.indices[missing][0])
        raise _missing(name, f"{column}", int((matrix.indices[missing] == column).sum()))
    return matrix


def _missing(name: str, column: str, count: int) -> ObservationError:
    return ObservationError(
        f"{name} must be finite and not all zero; column {column} has {count} missing or "
        "infinite: drop or fill what is missing"
    )
