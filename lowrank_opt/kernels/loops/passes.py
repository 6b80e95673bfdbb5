"""Numba loops over the groups ``first .. last - 1`` of a compressed axis, free of the GIL.

A group is taken in short segments, of which four or eight entries are taken at a time: a number of
the group's own factor, or of its sum, is then loaded once for as many products. Sums run in the
dtype of the factors over a segment, then in float64 over segments: the rounding error does not grow
with the length of a row. Scalars are summed in float64.

A loop that sums writes nothing, here and in the files beside: the compiler splits a sum into lanes
only where it sees, at run time, that the arrays written lie apart from those read, so that a loop
with both would sum in one order or another by where the arrays happen to lie.
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
def _products(
    begin: int, end: int, indices: Ints, factor: Floats, right: Floats, out: Floats
) -> None:
    """Write the inner products of a factor with the rows of entries ``begin .. end - 1``."""
    rank = len(factor)
    zero = factor.dtype.type(0)
    fours = end - (end - begin) % 4
    for k in range(begin, fours, 4):
        x0, x1 = right[indices[k]], right[indices[k + 1]]
        x2, x3 = right[indices[k + 2]], right[indices[k + 3]]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for q in range(rank):
            u = factor[q]
            s0 += u * x0[q]
            s1 += u * x1[q]
            s2 += u * x2[q]
            s3 += u * x3[q]
        out[k - begin], out[k - begin + 1] = s0, s1
        out[k - begin + 2], out[k - begin + 3] = s2, s3
    for k in range(fours, end):
        other = right[indices[k]]
        s = zero
        for q in range(rank):
            s += factor[q] * other[q]
        out[k - begin] = s


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _combine(
    begin: int, end: int, indices: Ints, g: Floats, offset: int, dense: Floats, out: Floats
) -> None:
    """Add the rows of entries ``begin .. end - 1``, times coefficients from an offset on."""
    rank = len(out)
    eights = end - (end - begin) % 8
    for k in range(begin, eights, 8):
        x0, x1 = dense[indices[k]], dense[indices[k + 1]]
        x2, x3 = dense[indices[k + 2]], dense[indices[k + 3]]
        x4, x5 = dense[indices[k + 4]], dense[indices[k + 5]]
        x6, x7 = dense[indices[k + 6]], dense[indices[k + 7]]
        c = k - begin + offset
        g0, g1, g2, g3 = g[c], g[c + 1], g[c + 2], g[c + 3]
        g4, g5, g6, g7 = g[c + 4], g[c + 5], g[c + 6], g[c + 7]
        for q in range(rank):
            first = g0 * x0[q] + g1 * x1[q] + g2 * x2[q] + g3 * x3[q]
            out[q] += first + (g4 * x4[q] + g5 * x5[q] + g6 * x6[q] + g7 * x7[q])
    for k in range(eights, end):
        other, coefficient = dense[indices[k]], g[k - begin + offset]
        for q in range(rank):
            out[q] += coefficient * other[q]


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
    residuals = np.empty(_SEGMENT, left.dtype)
    for i in range(first, last):
        loss = 0.0
        total = 0.0
        whole[:] = 0
        for start in range(pointers[i], pointers[i + 1], _SEGMENT):
            end = min(start + _SEGMENT, pointers[i + 1])
            _products(start, end, indices, left[i], right, residuals)
            count = end - start
            for k in range(count):
                prediction = residuals[k]
                if row_bias is not None and col_bias is not None:
                    prediction += row_bias[i] + col_bias[indices[start + k]]
                residuals[k] = prediction - values[start + k]
            for k in range(count):
                residual = residuals[k]
                weighted = residual
                if weights is not None:
                    weighted = residual * weights[start + k]
                loss += np.float64(residual) * np.float64(weighted)
            for k in range(count):
                residuals[k] *= 2 if weights is None else 2 * weights[start + k]
            if doubled is not None:
                for k in range(count):
                    doubled[start + k] = residuals[k]
                for k in range(count):
                    total += np.float64(residuals[k])
            if d_left is not None:
                part[:] = 0
                _combine(start, end, indices, residuals, 0, right, part)
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
    for i in range(first, last):
        begin, end = pointers[i], pointers[i + 1]
        _products(begin, end, indices, left[i], right, out[begin:end])
        if row_bias is not None and col_bias is not None:
            for k in range(begin, end):
                out[k] += row_bias[i] + col_bias[indices[k]]


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
    g, offset = coefficients, 0
    if positions is not None:
        # In a loop of its own, the jumps through memory overlap.
        offset = pointers[first]
        g = np.empty(pointers[last] - offset, coefficients.dtype)
        for k in range(len(g)):
            g[k] = coefficients[positions[offset + k]]
    for i in range(first, last):
        total = 0.0
        whole[:] = 0
        for start in range(pointers[i], pointers[i + 1], _SEGMENT):
            end = min(start + _SEGMENT, pointers[i + 1])
            for k in range(start - offset, end - offset):
                total += np.float64(g[k])
            part[:] = 0
            _combine(start, end, indices, g, start - offset, dense, part)
            for q in range(rank):
                whole[q] += part[q]
        for q in range(rank):
            out[i, q] = whole[q]
        if totals is not None:
            totals[i] = total
