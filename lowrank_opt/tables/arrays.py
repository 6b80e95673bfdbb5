"""Arrays of every library as NumPy arrays that torch takes, and vectors of numbers."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.series import column_of, is_column

Array: TypeAlias = NDArray[Any]

_EXACT = {4: 2**24, 8: 2**53}
# Beyond, float32 does not tell integers apart.
_TOLD_APART = float(2**24)
# And float64, from here on.
WHOLE = float(2**53)


def as_array(data: object) -> Array:
    """Return an array in native byte order and row after row, which shares memory if it can.

    Parameters
    ----------
    data : array, tensor, column of a frame, or anything that has the array or DLPack interface
        Of a masked array the mask stays.
    """
    if isinstance(data, Tensor):
        data = _from_tensor(data)
    elif is_column(data):
        data = column_of(data)
    elif hasattr(data, "to_numpy"):  # a column of pandas
        data = cast("Any", data).to_numpy()
    elif not hasattr(data, "__array__") and hasattr(data, "__dlpack__"):
        data = np.from_dlpack(cast("Any", data))
    try:
        x: Array = np.asanyarray(data)
    except ValueError as error:
        raise ShapeError(
            f"an array must have lines of one length; got {type(data).__name__}: {error}"
        ) from error
    if isinstance(x, np.matrix):
        x = np.asarray(x)
    if x.dtype.kind in "iufc" and x.dtype.byteorder not in "=|":
        x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float64)
    # Reversed and strided views have strides that torch refuses.
    return x if any(s < 0 for s in x.strides) is False else x.copy()


def _from_tensor(x: Tensor) -> Array:
    if x.is_meta:
        raise ObservationError(f"a tensor must hold numbers; got one of {x.device} without any")
    x = x.detach().cpu()
    dense = x.resolve_conj().resolve_neg()
    small = dense.is_floating_point() and dense.element_size() < 4
    # NumPy has no bfloat16; every half-precision number is a float32.
    return (dense.float() if small else dense).numpy()


def mask_of(x: Array) -> NDArray[np.bool_] | None:
    """Return where a masked array has gaps; None if it has none."""
    return np.ma.getmaskarray(x) if np.ma.is_masked(x) else None


def as_reals(values: object, name: str) -> NDArray[np.floating]:
    """Return real numbers as float32, if they are of that or of half precision, else as float64.

    NaN and infinity pass. A whole number that float64 does not hold is refused rather than
    rounded: 9007199254740993 would become its neighbour.

    Raises
    ------
    ObservationError
        If they are no real numbers: complex, dates, text that is none.
    """
    x = _as_exact(values)
    mask = mask_of(x)
    if mask is not None:
        raise ObservationError(
            f"{name} must not be masked; got {int(mask.sum())} of {mask.size} masked: leave them "
            "out, as with x.compressed()"
        )
    x = np.asarray(x)
    if x.size == 0:
        return x.astype(np.float32 if x.dtype == np.float32 else np.float64)
    if x.dtype.kind == "f":
        return x.astype(np.float32 if x.dtype.itemsize <= 4 else np.float64)
    if x.dtype.kind in "iub":
        return _exact(x, name)
    if x.dtype.kind in "cmMV":
        raise ObservationError(
            f"{name} must be real numbers; got {x.dtype}: convert them to numbers first"
        )
    return _from_objects(x, name)


def as_finite(values: object, name: str) -> NDArray[np.floating]:
    """Return a vector of float32 or float64, all finite.

    Raises
    ------
    ShapeError
        If there is more than one axis.
    ObservationError
        If a value is no real number, or not finite.
    """
    x = as_reals(values, name)
    if x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 1:
        raise ShapeError(f"{name} must be a vector; got shape {x.shape}")
    bad = ~np.isfinite(x)
    if bad.any():
        k = int(bad.argmax())
        raise ObservationError(
            f"{name} must be finite; got {int(bad.sum())} of {len(x)} NaN or infinity, the first "
            f"{float(x[k])!r} at position {k}: leave missing entries out"
        )
    return x


def narrowed(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return values in float32, unless that would merge integers."""
    single = values.astype(np.float32)
    merged = (np.abs(values) > _TOLD_APART) & (values == np.round(values)) & (single != values)
    return values if merged.any() else single


def whole_numbers(x: Array, name: str) -> NDArray[np.int64]:
    """Return floating numbers that stand for integers as these.

    Raises
    ------
    ObservationError
        If one is missing, not whole, or so large that its neighbours have the same float.
    """
    limit = _EXACT.get(x.dtype.itemsize, 2**11)
    bad = ~(np.isfinite(x) & (x == np.round(x)))
    if bad.any():
        k = int(bad.argmax())
        raise ObservationError(
            f"{name} must be integers, strings or other labels; got {int(bad.sum())} of {len(x)} "
            f"numbers that are missing or not whole, the first {float(x[k])!r} at position {k}"
        )
    large = np.abs(x) >= limit
    if large.any():
        k = int(large.argmax())
        raise ObservationError(
            f"{name} in {x.dtype} must be below {limit}, from which on two integers are one "
            f"number; got {float(x[k])!r} at position {k}: pass them as integers or strings"
        )
    return x.astype(np.int64)


def _as_exact(values: object) -> Array:
    """Return an array; of objects, if numbers in a list would be rounded to make one."""
    x = as_array(values)
    rounds = isinstance(values, list | tuple) or getattr(values, "dtype", None) == np.longdouble
    if rounds and x.dtype == np.float64 and bool((np.abs(x) >= WHOLE).any()):
        return np.asarray(values, dtype=object)
    return x


def _exact(x: Array, name: str) -> NDArray[np.floating]:
    y = x.astype(np.float64)
    if x.dtype.kind == "b" or x.dtype.itemsize < 8:
        return y
    largest = max(abs(int(x.max())), abs(int(x.min())))
    if largest > 2**53:
        raise ObservationError(
            f"{name} must be numbers that float64 holds; got integers up to {largest}, beyond "
            "2**53: subtract an offset first"
        )
    return y


def _from_objects(x: Array, name: str) -> NDArray[np.floating]:
    items = x.ravel().tolist()
    kinds = {type(item) for item in items}
    missing = [k for k, x in enumerate(items) if x is None or type(x).__name__ == "NAType"]
    if missing:
        raise ObservationError(
            f"{name} must not be missing; got {len(missing)} of {len(items)} missing, the first at "
            f"position {missing[0]}: leave them out"
        )
    try:
        if any(issubclass(kind, complex | np.complexfloating) for kind in kinds):
            raise ValueError("complex numbers")
        if kinds <= {str} and any("_" in item for item in items):
            raise ValueError("text with an underscore")
        found = np.array([float(item) for item in items])
        large = np.nonzero(np.abs(found) >= WHOLE)[0].tolist()
        lossy = next((k for k in large if not _holds(found[k], items[k])), None)
        if lossy is not None:
            raise ValueError(f"{items[lossy]!r} is no float64")
    except (TypeError, ValueError, OverflowError) as error:
        raise ObservationError(f"{name} must be real numbers; got {x.dtype}: {error}") from error
    return found.reshape(x.shape)


def _holds(found: np.float64, item: object) -> bool:
    """Whether a whole number is one of float64; others are rounded in any case."""
    if isinstance(item, str | bytes):
        text = item.decode() if isinstance(item, bytes) else item
        return not text.strip().lstrip("+-").isdecimal() or int(text) == int(found)
    if isinstance(item, float):
        return True
    number: Any = item
    return not np.isfinite(found) or number != int(number) or int(number) == int(found)
