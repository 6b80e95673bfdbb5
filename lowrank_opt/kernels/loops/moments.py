"""Numba loops that find the Gaussian posterior of each row given moments of the other side.

A prediction is ``u v + a + b``, with row factors u and bias a, column factors v and bias b. The
side z = (v, 1, b) of the columns is kept by its means, and by the lower triangle of its second
moments ``E[z z^T]``, packed row after row. What row i needs to know about its entries is then a sum
of packed vectors; the first (K+1)(K+2)/2 numbers of that sum are its Gram matrix, the next K+1 the
correction for the biases of the columns. Rows are the same with the sides exchanged.

A row is computed by one thread, in one order, so results do not depend on the number of threads.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit
from lowrank_opt.kernels.loops.lanes import LANES, factor, invert, solve

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_FASTMATH = {"reassoc", "contract"}
# A sum of squares this small beside its terms is mostly rounding, and summed entry by entry.
_CANCELLED = 1e-2


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _sum_vectors(
    begin: int, end: int, indices: Ints, weights: Floats, vectors: Floats, out: Floats
) -> None:
    """Set out to ``sum_k weights[k] vectors[indices[k]]``, four entries at a time."""
    out[:] = 0
    zero = vectors.dtype.type(0)
    last = end - 1
    for k in range(begin, end, 4):
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        w0 = weights[k]
        w1 = weights[k1] if k + 1 < end else zero
        w2 = weights[k2] if k + 2 < end else zero
        w3 = weights[k3] if k + 3 < end else zero
        x0, x1 = vectors[indices[k]], vectors[indices[k1]]
        x2, x3 = vectors[indices[k2]], vectors[indices[k3]]
        for p in range(len(out)):
            out[p] += w0 * x0[p] + w1 * x1[p] + w2 * x2[p] + w3 * x3[p]


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def pack_moments(means: Floats, moments: Floats) -> None:
    """Write the packed ``z z^T`` of each row z of means."""
    for i in range(len(means)):
        z, s = means[i], 0
        for p in range(len(z)):
            for q in range(p + 1):
                moments[i, s] = z[p] * z[q]
                s += 1


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _assemble(
    lane: int,
    summed: Floats,
    products: Floats,
    scale: float,
    precision: Floats,
    pull: Floats,
    A: Floats,
    b: Floats,
) -> None:
    """Set the lower triangle of a posterior precision, and its product with the mean."""
    D = len(b)
    corner = D * (D + 1) // 2
    s = 0
    for p in range(D):
        b[p, lane] = scale * (np.float64(products[p]) - summed[corner + p]) + pull[p]
        for q in range(p + 1):
            A[p, q, lane] = scale * summed[s] + precision[p, q]
            s += 1


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _scale_values(begin: int, end: int, values: Floats, weights: Floats, scaled: Floats) -> float:
    """Write ``w y``, and return ``sum w y^2``."""
    for k in range(begin, end):
        scaled[k] = weights[k] * values[k]
    # In a loop of its own, the sum is taken in one order wherever the arrays happen to lie.
    total = 0.0
    for k in range(begin, end):
        total += np.float64(scaled[k]) * values[k]
    return total


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _quadratic(summed: Floats, x: Floats, C: Floats | None) -> float:
    """Return ``<C + w w^T, S>``, where w = (x, 1), C covers x, and S is the packed sum."""
    D = len(x)
    total, s = 0.0, 0
    for p in range(D + 1):
        xp = x[p] if p < D else 1.0
        row = 0.0
        for q in range(p):
            row += x[q] * summed[s + q]
        total += xp * (2 * row + (xp * summed[s + p]))
        if C is not None and p < D:
            row = 0.0
            for q in range(p):
                row += C[p, q] * summed[s + q]
            total += 2 * row + C[p, p] * summed[s + p]
        s += p + 1
    return total


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _linear(products: Floats, x: Floats) -> float:
    D = len(x)
    total = np.float64(products[D])
    for p in range(D):
        total += x[p] * products[p]
    return total


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _loss_of_means(
    begin: int,
    end: int,
    indices: Ints,
    values: Floats,
    weights: Floats,
    means: Floats,
    x: Floats,
) -> tuple[float, float]:
    """Return ``sum w (y - x z)^2`` and ``sum w (x z)^2``; the other side's bias counts once."""
    D = len(x)
    loss, fitted = 0.0, 0.0
    for k in range(begin, end):
        z = means[indices[k]]
        prediction = np.float64(z[D])
        for p in range(D):
            prediction += x[p] * z[p]
        e, w = values[k] - prediction, np.float64(weights[k])
        loss += w * e * e
        fitted += w * prediction * prediction
    return loss, fitted


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _store_moments(x: Floats, C: Floats, means: Floats, moments: Floats) -> None:
    """Write means and packed second moments of (x_1 .. x_K, 1, x_D), where D = K + 1."""
    D, s = len(x), 0
    for p in range(D + 1):
        # Position D - 1 is the constant one, position D the bias, the last number of x.
        xp = 1.0 if p == D - 1 else x[min(p, D - 1)]
        means[p] = xp
        for q in range(p + 1):
            xq = 1.0 if q == D - 1 else x[min(q, D - 1)]
            m = xp * xq
            if p != D - 1 and q != D - 1:
                m += C[min(p, D - 1), min(q, D - 1)]
            moments[s] = m
            s += 1


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def posterior_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    values: Floats,
    weights: Floats,
    means: Floats,
    moments: Floats,
    scales: Floats,
    precision: Floats,
    pull: Floats,
    smallest: float,
    out_means: Floats,
    out_moments: Floats,
    losses: Floats,
    logdets: Floats,
) -> None:
    """Write the posterior of each row.

    Parameters
    ----------
    values, weights : array, shape (nnz,)
        In the order of `indices`.
    means : array, shape (n, K + 2)
    moments : array, shape (n, (K + 2)(K + 3) / 2)
    scales : array, shape (m,), float64
        Multiplies the data term of each row.
    precision : array, shape (K + 1, K + 1), float64
    pull : array, shape (m, K + 1), float64
        Prior precision times prior mean.
    smallest : float
        Smallest pivot relative to its diagonal entry.
    out_means, out_moments : arrays, shapes of the other side with m rows
    losses : array, shape (m,), float64
        Receives the expected weighted sum of squared residuals.
    logdets : array, shape (m,), float64
        Receives the log determinant of the posterior precision.
    """
    D = means.shape[1] - 1
    summed = np.empty((LANES, moments.shape[1]), moments.dtype)
    products, energy = np.empty((LANES, D + 1), means.dtype), np.empty(LANES)
    scaled = np.empty(len(values), values.dtype)
    A, S, C = np.empty((D, D, LANES)), np.empty((D, D, LANES)), np.empty((D, D, LANES))
    b, logs, covariance, x = np.empty((D, LANES)), np.empty(LANES), np.empty((D, D)), np.empty(D)
    for start in range(first, last, LANES):
        for lane in range(LANES):
            # Spare lanes repeat the last row.
            i = min(start + lane, last - 1)
            begin, end, S_i, y = pointers[i], pointers[i + 1], summed[lane], products[lane]
            energy[lane] = _scale_values(begin, end, values, weights, scaled)
            _sum_vectors(begin, end, indices, weights, moments, S_i)
            _sum_vectors(begin, end, indices, scaled, means, y)
            _assemble(lane, S_i, y, scales[i], precision, pull[i], A, b)
        factor(A, smallest, logs)
        invert(A, S, C)
        solve(A, b, None)
        for lane in range(min(LANES, last - start)):
            i, S_i = start + lane, summed[lane]
            for p in range(D):
                x[p] = b[p, lane]
                for q in range(p + 1):
                    covariance[p, q] = covariance[q, p] = C[p, q, lane]
            quadratic = _quadratic(S_i, x, covariance)
            losses[i] = energy[lane] - 2 * _linear(products[lane], x) + quadratic
            if losses[i] < _CANCELLED * energy[lane]:
                begin, end = pointers[i], pointers[i + 1]
                loss, fitted = _loss_of_means(begin, end, indices, values, weights, means, x)
                losses[i] = loss + max(quadratic - fitted, 0.0)
            logdets[i] = logs[lane]
            _store_moments(x, covariance, out_means[i], out_moments[i])


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def draw_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    values: Floats,
    weights: Floats,
    means: Floats,
    moments: Floats,
    scales: Floats,
    precision: Floats,
    pull: Floats,
    smallest: float,
    noise: Floats,
    out: Floats,
    losses: Floats,
) -> None:
    """Write a draw from the posterior of each row; as `posterior_pass`.

    Parameters
    ----------
    noise : array, shape (m, K + 1)
        Standard normal.
    out : array, shape (m, K + 2)
        Receives (u, 1, a).
    """
    D = means.shape[1] - 1
    summed = np.empty((LANES, moments.shape[1]), moments.dtype)
    products, energy = np.empty((LANES, D + 1), means.dtype), np.empty(LANES)
    scaled = np.empty(len(values), values.dtype)
    A, b, z = np.empty((D, D, LANES)), np.empty((D, LANES)), np.empty((D, LANES))
    logs, x = np.empty(LANES), np.empty(D)
    for start in range(first, last, LANES):
        for lane in range(LANES):
            i = min(start + lane, last - 1)
            begin, end, S_i, y = pointers[i], pointers[i + 1], summed[lane], products[lane]
            energy[lane] = _scale_values(begin, end, values, weights, scaled)
            _sum_vectors(begin, end, indices, weights, moments, S_i)
            _sum_vectors(begin, end, indices, scaled, means, y)
            _assemble(lane, S_i, y, scales[i], precision, pull[i], A, b)
            for p in range(D):
                z[p, lane] = noise[i, p]
        factor(A, smallest, logs)
        solve(A, b, z)
        for lane in range(min(LANES, last - start)):
            i = start + lane
            for p in range(D):
                x[p] = b[p, lane]
            for p in range(D - 1):
                out[i, p] = x[p]
            out[i, D - 1] = 1
            out[i, D] = x[D - 1]
            quadratic = _quadratic(summed[lane], x, None)
            losses[i] = energy[lane] - 2 * _linear(products[lane], x) + quadratic
            if losses[i] < _CANCELLED * energy[lane]:
                begin, end = pointers[i], pointers[i + 1]
                losses[i], _ = _loss_of_means(begin, end, indices, values, weights, means, x)
