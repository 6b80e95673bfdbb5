"""Checks and conversions of index pairs and their values, with messages that say what to do."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.observations.sparsity import SortedPairs
from lowrank_opt.tables.arrays import as_array, mask_of
from lowrank_opt.tables.arrays import as_reals as real_array

Duplicates: TypeAlias = Literal["error", "mean", "sum", "last"]
ArrayLike: TypeAlias = Tensor | NDArray[np.generic] | Sequence[float] | Sequence[int]


def common_device(**inputs: ArrayLike | None) -> torch.device:
    """Return the device that all tensors among the inputs share; the CPU if there are none."""
    found = {name: x.device for name, x in inputs.items() if isinstance(x, Tensor)}
    if len(set(found.values())) > 1:
        text = ", ".join(f"{name} on {device}" for name, device in found.items())
        raise ShapeError(
            f"all tensors must be on one device; got {text}: move them with .to(device)"
        )
    return next(iter(found.values()), torch.device("cpu"))


def as_indices(index: ArrayLike, name: str, device: torch.device) -> Tensor:
    """Return a copy as an int64 vector; refuse anything that is not integer."""
    x = _as_vector(index, name)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ObservationError(
            f"{name} must be integers; got dtype {x.dtype}: "
            "convert positions with .astype(int), labels with pandas.factorize"
        )
    return x.to(device, torch.int64)


def as_positions(index: ArrayLike, total: int, device: torch.device) -> Tensor:
    """Return positions among `total` entries, given themselves or as a boolean mask."""
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        if index.shape != (total,):
            raise ShapeError(f"a mask must have shape ({total},); got {tuple(index.shape)}")
        return index.to(device).nonzero().squeeze(1)
    k = as_indices(index, "index", device)
    bad = (k < 0) | (k >= total)
    if bool(bad.any()):
        raise ObservationError(
            f"positions must be in 0..{total - 1}; got {int(bad.sum())} of {len(k)} outside, "
            f"the first {int(k[bad][0])}"
        )
    return k


def as_reals(values: ArrayLike, name: str, device: torch.device) -> Tensor:
    """Return a copy as a float32 or float64 vector.

    Numbers that have a dtype keep it, if it is one of these; others have torch's default.
    """
    x = _as_vector(values, name)
    if x.is_complex() or x.dtype == torch.bool:
        raise ObservationError(f"{name} must be real numbers; got dtype {x.dtype}")
    if not hasattr(values, "dtype") or not x.is_floating_point():
        single = x.to(torch.get_default_dtype())
        # Integers that the default does not tell apart stay apart.
        merged = not x.is_floating_point() and not bool((single.double() == x.double()).all())
        return (x.double() if merged else single).to(device)
    return x.to(device, torch.float64 if x.dtype == torch.float64 else torch.float32)


def as_matrix(matrix: object) -> Tensor:
    """Return an array as a tensor, with NaN where it is masked."""
    array = as_array(matrix)
    gaps = mask_of(array)
    reals = real_array(np.asarray(array), "a dense matrix")
    return torch.from_numpy(reals if gaps is None else np.where(gaps, np.nan, reals))


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return a shape; raise ShapeError unless it is of two positive integers."""
    if len(shape) != 2 or not all(int(x) == x and x >= 1 for x in shape):
        raise ShapeError(f"shape must be two positive integers (rows, columns); got {shape!r}")
    return int(shape[0]), int(shape[1])


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype of values; raise ObservationError if it is none."""
    if dtype not in (torch.float32, torch.float64):
        raise ObservationError(f"observations are float32 or float64; got dtype={dtype!r}")
    return dtype


def check_equal_lengths(rows: Tensor, cols: Tensor, values: Tensor, weights: Tensor | None) -> None:
    """Raise unless all vectors have one length, and it is not zero."""
    vectors = {"rows": rows, "cols": cols, "values": values, "weights": weights}
    sizes = {name: len(x) for name, x in vectors.items() if x is not None}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(f"rows, cols, values and weights must have one length; got {text}")
    if len(rows) == 0:
        raise ObservationError("at least one entry must be observed; got none")


def check_rule(duplicates: str) -> None:
    """Raise unless `duplicates` is one of the four rules."""
    if duplicates not in ("error", "mean", "sum", "last"):
        raise ObservationError(
            f"duplicates must be 'error', 'mean', 'sum' or 'last'; got duplicates={duplicates!r}"
        )


def check_range(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless ``0 <= rows < m`` and ``0 <= cols < n``."""
    m, n = shape
    # Two reductions decide the usual case without a mask.
    if (
        int(rows.min()) >= 0
        and int(rows.max()) < m
        and int(cols.min()) >= 0
        and int(cols.max()) < n
    ):
        return
    bad = (rows < 0) | (rows >= m) | (cols < 0) | (cols >= n)
    raise ObservationError(
        f"indices of a {m} x {n} matrix must be in 0..{m - 1} and 0..{n - 1}; got "
        f"{_count_and_first(bad, rows, cols)}: use zero-based positions, or enlarge shape"
    )


def check_finite(values: Tensor, rows: Tensor, cols: Tensor) -> None:
    """Raise unless every value is finite."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise ObservationError(
            f"values must be finite in {values.dtype}; got {_count_and_first(bad, rows, cols)}: "
            "leave missing entries out (Observations.from_dense reads NaN as missing)"
        )


def check_weights(weights: Tensor) -> None:
    """Raise unless weights are finite, nonnegative, and not all zero."""
    if weights.requires_grad:
        raise ObservationError("weights must not require a gradient; pass weights.detach()")
    bad = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise ObservationError(
            f"weights must be finite and nonnegative; got {int(bad.sum())} of {len(bad)} that are "
            f"not, the first {float(weights[k])!r} at position {k}"
        )
    if not bool((weights > 0).any()):
        raise ObservationError(f"one weight at least must be positive; got {len(weights)} zeros")


def merge_duplicates(
    rows: Tensor,
    cols: Tensor,
    values: Tensor,
    weights: Tensor | None,
    pairs: SortedPairs,
    rule: Duplicates,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the entries with every repeated index pair merged, or raise ObservationError."""
    repeated, order = pairs.repeated, pairs.order
    if rule == "error":
        again = torch.zeros_like(order, dtype=torch.bool)
        again[order[1:][repeated]] = True
        raise ObservationError(
            f"an index pair must come once; got {_count_and_first(again, rows, cols)} again: pass "
            "duplicates='mean', 'sum' or 'last' to Observations or its from_... constructors"
        )
    first = torch.cat((repeated.new_ones(1), ~repeated))
    group = torch.empty_like(order)
    group[order] = first.cumsum(0) - 1
    last = order[torch.cat((first[1:], first.new_ones(1)))]
    v, w = _merge(values, weights, group, last, rule)
    # The groups are in the order of the pairs; entries keep the order in which they came.
    kept, position = torch.sort(last)
    return rows[kept], cols[kept], v[position], None if w is None else w[position]


def _merge(
    values: Tensor, weights: Tensor | None, group: Tensor, last: Tensor, rule: Duplicates
) -> tuple[Tensor, Tensor | None]:
    if rule == "last":
        return values[last], None if weights is None else weights[last]
    if rule == "sum" and weights is not None:
        raise ObservationError(
            "duplicates='sum' takes no weights; got weights: use 'mean', which adds them up"
        )
    if rule == "sum":
        return _group_sum(values, group, len(last)), None
    w = torch.ones_like(values) if weights is None else weights
    count, total = _group_sum(torch.ones_like(w), group, len(last)), _group_sum(w, group, len(last))
    # A group without any weight has the plain mean, and still no weight.
    share = torch.where(total[group] > 0, w / total[group], 1 / count[group])
    return _group_sum(share * values, group, len(last)), None if weights is None else total


def _group_sum(x: Tensor, group: Tensor, groups: int) -> Tensor:
    zeros = torch.zeros(groups, dtype=torch.float64, device=x.device)
    return zeros.index_add(0, group, x.to(torch.float64)).to(x.dtype)


def _as_vector(data: ArrayLike, name: str) -> Tensor:
    x = data.detach().clone() if isinstance(data, Tensor) else _from_array(data, name)
    if x.ndim != 1:
        raise ShapeError(f"{name} must be a vector; got shape {tuple(x.shape)}")
    return x


def _from_array(data: ArrayLike, name: str) -> Tensor:
    array = as_array(data)
    if (mask := mask_of(array)) is not None:
        raise ObservationError(
            f"{name} must not be masked; got {int(mask.sum())} of {mask.size} masked: leave them "
            "out, or pass the matrix to Observations.from_dense"
        )
    array = np.array(array)
    if array.size == 0:
        return torch.zeros(array.shape, dtype=torch.int64)
    if array.dtype.kind not in "iufb":
        raise ObservationError(
            f"{name} must be numbers; got an array of {array.dtype}: "
            "convert labels to positions with pandas.factorize"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        # torch has few operations on unsigned integers.
        if int(array.max()) > np.iinfo(np.int64).max:
            raise ObservationError(f"{name} must fit into int64; got {int(array.max())}")
        array = array.astype(np.int64)
    return torch.from_numpy(array)


def _count_and_first(bad: Tensor, rows: Tensor, cols: Tensor) -> str:
    k = int(bad.nonzero()[0])
    pair = f"(row {int(rows[k])}, column {int(cols[k])})"
    return f"{int(bad.sum())} of {len(bad)} entries, the first at position {k} {pair}"
