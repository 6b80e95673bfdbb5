"""Numba loops that solve, or sample from, one small least-squares problem per row.

Row i has the problem with matrix ``scale sum_k w_k x_k x_k^T + strength_i P`` over its entries k,
where x_k is the row of `features` of the entry's column. A row's Gram matrix lives in a scratch of
K x K: nothing of size entries x K^2 exists. A row is computed by one thread, in one order, so
results do not depend on the number of threads.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_FASTMATH = {"reassoc", "contract"}


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _accumulate(
    begin: int,
    end: int,
    indices: Ints,
    targets: Floats,
    weights: Floats | None,
    features: Floats,
    gram: Floats,
    moment: Floats,
) -> None:
    """Set the lower triangle of ``sum w x x^T`` and ``sum w t x``, four entries at a time."""
    K = features.shape[1]
    gram[:] = 0
    moment[:] = 0
    zero = features.dtype.type(0)
    one = features.dtype.type(1)
    for k in range(begin, end, 4):
        last = end - 1
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        w0 = one
        w1 = one if k + 1 < end else zero
        w2 = one if k + 2 < end else zero
        w3 = one if k + 3 < end else zero
        if weights is not None:
            w0, w1, w2, w3 = w0 * weights[k], w1 * weights[k1], w2 * weights[k2], w3 * weights[k3]
        x0, x1 = features[indices[k]], features[indices[k1]]
        x2, x3 = features[indices[k2]], features[indices[k3]]
        t0, t1, t2, t3 = w0 * targets[k], w1 * targets[k1], w2 * targets[k2], w3 * targets[k3]
        for a in range(K):
            moment[a] += t0 * x0[a] + t1 * x1[a] + t2 * x2[a] + t3 * x3[a]
        for a in range(K):
            c0, c1, c2, c3 = w0 * x0[a], w1 * x1[a], w2 * x2[a], w3 * x3[a]
            row = gram[a]
            for b in range(K):
                row[b] += c0 * x0[b] + c1 * x1[b] + c2 * x2[b] + c3 * x3[b]


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _factor_and_solve(A: Floats, b: Floats, noise: Floats | None) -> bool:
    """Replace b by ``A^-1 b``, plus ``chol(A)^-T noise``; False if A is not positive definite."""
    K = len(b)
    for i in range(K):
        for j in range(i):
            total = A[i, j]
            for k in range(j):
                total -= A[i, k] * A[j, k]
            A[i, j] = total * A[j, j]
        pivot = A[i, i]
        for k in range(i):
            pivot -= A[i, k] * A[i, k]
        if not pivot > 0:
            return False
        A[i, i] = 1 / np.sqrt(pivot)  # the reciprocal: divisions are slow
    for i in range(K):
        total = b[i]
        for k in range(i):
            total -= A[i, k] * b[k]
        b[i] = total * A[i, i]
    if noise is not None:
        for i in range(K):
            b[i] += noise[i]
    for i in range(K - 1, -1, -1):
        b[i] *= A[i, i]
        for k in range(i):
            b[k] -= A[i, k] * b[i]
    return True


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _squared_loss(
    begin: int,
    end: int,
    indices: Ints,
    targets: Floats,
    weights: Floats | None,
    features: Floats,
    x: Floats,
) -> float:
    """Return ``sum w (t - features x)^2`` over the entries of a row."""
    loss = 0.0
    for k in range(begin, end):
        row = features[indices[k]]
        e = targets[k]
        for a in range(len(x)):
            e -= row[a] * x[a]
        w = 1.0 if weights is None else weights[k]
        loss += w * e * e
    return loss


@njit(nogil=True, cache=True)
def _gather_targets(
    begin: int, end: int, indices: Ints, values: Floats, offsets: Floats, targets: Floats
) -> None:
    for k in range(begin, end):
        targets[k] = values[k] - offsets[indices[k]]


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def exact_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    values: Floats,
    weights: Floats | None,
    features: Floats,
    offsets: Floats,
    scale: float,
    precision: Floats,
    strengths: Floats,
    pull: Floats,
    noise: Floats | None,
    targets: Floats,
    out: Floats,
    losses: Floats,
) -> None:
    """Solve by Cholesky factorisation in float64, or draw from the Gaussian posterior.

    Parameters
    ----------
    values, weights : array, shape (nnz,)
        In the order of `indices`; the targets are ``values - offsets[indices]``.
    scale : float
        Multiplies the data term.
    precision : array, shape (K, K), float64
    strengths : array, shape (m,), float64
    pull : array, shape (m, K), float64
        Added to the right-hand side: precision times prior mean.
    noise : array, shape (m, K), or None
        Standard normal numbers for a draw.
    targets : array, shape (nnz,)
        Scratch.
    out : array, shape (m, K)
        Rows whose matrix is not positive definite stay as they were, and their loss is NaN.
    losses : array, shape (m,), float64
        Receives each row's weighted sum of squared residuals.
    """
    K = features.shape[1]
    gram, moment = np.empty((K, K), features.dtype), np.empty(K, features.dtype)
    A, b = np.empty((K, K), np.float64), np.empty(K, np.float64)
    for i in range(first, last):
        begin, end = pointers[i], pointers[i + 1]
        _gather_targets(begin, end, indices, values, offsets, targets)
        _accumulate(begin, end, indices, targets, weights, features, gram, moment)
        for a in range(K):
            b[a] = scale * moment[a] + pull[i, a]
            for c in range(a + 1):
                A[a, c] = scale * gram[a, c] + strengths[i] * precision[a, c]
        draw = None if noise is None else noise[i]
        losses[i] = np.nan
        if _factor_and_solve(A, b, draw):
            out[i] = b
            losses[i] = _squared_loss(begin, end, indices, targets, weights, features, out[i])


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _apply(
    begin: int,
    end: int,
    indices: Ints,
    weights: Floats | None,
    features: Floats,
    ridge: Floats,
    p: Floats,
    out: Floats,
) -> None:
    """Set out to ``sum w x (x^T p) + ridge p``."""
    K = len(p)
    for a in range(K):
        out[a] = ridge[a] * p[a]
    for k in range(begin, end):
        row = features[indices[k]]
        s = 0.0
        for a in range(K):
            s += row[a] * p[a]
        s *= 1.0 if weights is None else weights[k]
        for a in range(K):
            out[a] += s * row[a]


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def conjugate_gradient_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    values: Floats,
    weights: Floats | None,
    features: Floats,
    offsets: Floats,
    diagonal: Floats,
    strengths: Floats,
    steps: int,
    targets: Floats,
    out: Floats,
    losses: Floats,
) -> None:
    """Improve `out` by a few conjugate gradient steps from where it is; as `exact_pass`."""
    K = features.shape[1]
    r, p, q, x, ridge = np.empty(K), np.empty(K), np.empty(K), np.empty(K), np.empty(K)
    for i in range(first, last):
        begin, end = pointers[i], pointers[i + 1]
        _gather_targets(begin, end, indices, values, offsets, targets)
        for a in range(K):
            ridge[a] = strengths[i] * diagonal[a]
            x[a] = out[i, a]
        _apply(begin, end, indices, weights, features, ridge, x, q)
        for a in range(K):
            r[a] = -q[a]
        for k in range(begin, end):
            w = 1.0 if weights is None else weights[k]
            row = features[indices[k]]
            for a in range(K):
                r[a] += w * targets[k] * row[a]
        p[:] = r
        rr = np.dot(r, r)
        for _ in range(steps):
            if not rr > 0:
                break
            _apply(begin, end, indices, weights, features, ridge, p, q)
            alpha = rr / np.dot(p, q)
            for a in range(K):
                x[a] += alpha * p[a]
                r[a] -= alpha * q[a]
            previous, rr = rr, np.dot(r, r)
            for a in range(K):
                p[a] = r[a] + (rr / previous) * p[a]
        out[i] = x
        losses[i] = _squared_loss(begin, end, indices, targets, weights, features, out[i])
