"""Numba loops over the groups ``first .. last - 1`` of a compressed axis, free of the GIL.

Rows of the factors are contiguous, and their inner loops vectorise. Sums run in the dtype of the
factors over a short segment of a group, then in float64 over segments: the rounding error does not
grow with the length of a row. Scalars are summed in float64.
Arguments that are None select a specialisation without that part.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_SEGMENT = 64
# Sums may be reordered and fused; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract"}


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def squared_loss_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    values: Floats,
    weights: Floats | None,
    left: Floats,
    right: Floats,
    row_bias: Floats | None,
    col_bias: Floats | None,
    losses: Floats,
    doubled: Floats | None,
    d_left: Floats | None,
    d_row: Floats | None,
) -> None:
    """Write the loss of each row and, unless None, its gradients.

    Parameters
    ----------
    losses : array, shape (m,), float64
    doubled : array, shape (nnz,), or None
        Receives twice the weighted residuals, in the order of the rows.
    d_left : array, shape (m, r), or None
    d_row : array, shape (m,), or None
        None only if `doubled` or the biases are None.
    """
    rank = left.shape[1]
    part = np.zeros(rank, left.dtype)
    whole = np.zeros(rank, np.float64)
    for i in range(first, last):
        factor = left[i]
        loss = 0.0
        total = 0.0
        whole[:] = 0
        for start in range(pointers[i], pointers[i + 1], _SEGMENT):
            part[:] = 0
            for k in range(start, min(start + _SEGMENT, pointers[i + 1])):
                j = indices[k]
                other = right[j]
                prediction = left.dtype.type(0)
                for q in range(rank):
                    prediction += factor[q] * other[q]
                if row_bias is not None and col_bias is not None:
                    prediction += row_bias[i] + col_bias[j]
                residual = prediction - values[k]
                weighted = residual
                if weights is not None:
                    weighted = residual * weights[k]
                loss += np.float64(residual) * np.float64(weighted)
                if doubled is not None:
                    g = weighted + weighted
                    doubled[k] = g
                    total += g
                    for q in range(rank):
                        part[q] += g * other[q]
            if d_left is not None:
                for q in range(rank):
                    whole[q] += part[q]
        losses[i] = loss
        if d_left is not None:
            for q in range(rank):
                d_left[i, q] = whole[q]
        if d_row is not None:
            d_row[i] = total


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def entries_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    left: Floats,
    right: Floats,
    row_bias: Floats | None,
    col_bias: Floats | None,
    out: Floats,
) -> None:
    """Write the prediction of each entry, in the order of the rows."""
    rank = left.shape[1]
    for i in range(first, last):
        factor = left[i]
        for k in range(pointers[i], pointers[i + 1]):
            j = indices[k]
            other = right[j]
            prediction = left.dtype.type(0)
            for q in range(rank):
                prediction += factor[q] * other[q]
            if row_bias is not None and col_bias is not None:
                prediction += row_bias[i] + col_bias[j]
            out[k] = prediction


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def product_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    positions: Ints | None,
    coefficients: Floats,
    dense: Floats,
    out: Floats,
    totals: Floats | None,
) -> None:
    """Write ``sum_k coefficient[k] * dense[indices[k]]`` for each group, and the sums alone.

    Parameters
    ----------
    positions : array, shape (nnz,), or None
        Where the coefficient of each entry is; None if they are in the order of the groups.
    out : array, shape (groups, r)
    totals : array, shape (groups,), or None
    """
    rank = dense.shape[1]
    part = np.zeros(rank, dense.dtype)
    whole = np.zeros(rank, np.float64)
    for i in range(first, last):
        total = 0.0
        whole[:] = 0
        for start in range(pointers[i], pointers[i + 1], _SEGMENT):
            part[:] = 0
            for k in range(start, min(start + _SEGMENT, pointers[i + 1])):
                g = coefficients[k] if positions is None else coefficients[positions[k]]
                other = dense[indices[k]]
                total += g
                for q in range(rank):
                    part[q] += g * other[q]
            for q in range(rank):
                whole[q] += part[q]
        for q in range(rank):
            out[i, q] = whole[q]
        if totals is not None:
            totals[i] = total
