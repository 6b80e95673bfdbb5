"""Numba loops for one small nonnegative least-squares problem per row.

As `normal_equations.exact_pass`, with the first unknowns at least zero. Each coordinate is set to
its exact minimum in turn (Hsieh and Dhillon 2011, the inner loop), which never raises the
objective, until none moves by more than rounding.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit
from lowrank_opt.kernels.loops.normal_equations import (
    _accumulate,  # pyright: ignore[reportPrivateUsage]
    _gather_targets,  # pyright: ignore[reportPrivateUsage]
    _squared_loss,  # pyright: ignore[reportPrivateUsage]
)
from lowrank_opt.kernels.protocol import MOST_ROUNDS, SETTLED

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@njit(nogil=True, cache=True)
def _descend(A: Floats, b: Floats, x: Floats, free: int) -> None:
    """Minimise ``x^T A x / 2 - b^T x`` over x with x[:K - free] >= 0, from where x is."""
    K = len(b)
    for _ in range(MOST_ROUNDS):
        moved, size = 0.0, 0.0
        for a in range(K):
            if not A[a, a] > 0:
                continue
            slope = b[a]
            for c in range(K):
                slope -= A[a, c] * x[c]
            new = x[a] + slope / A[a, a]
            if a < K - free:
                new = max(new, 0.0)
            moved = max(moved, abs(new - x[a]))
            size = max(size, abs(new))
            x[a] = new
        if moved <= SETTLED * size:
            return


@njit(nogil=True, cache=True)
def nonnegative_pass(
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
    free: int,
    targets: Floats,
    out: Floats,
    losses: Floats,
) -> None:
    """Solve each row, from where it is; all but the last `free` unknowns stay nonnegative."""
    K = features.shape[1]
    A, b, x = np.empty((K, K)), np.empty(K), np.empty(K)
    for i in range(first, last):
        begin, end = pointers[i], pointers[i + 1]
        _gather_targets(begin, end, indices, values, offsets, targets)
        _accumulate(begin, end, indices, targets, weights, features, A, b)
        for a in range(K):
            A[a, a] += strengths[i] * diagonal[a]
            x[a] = out[i, a]
        _descend(A, b, x, free)
        out[i] = x
        losses[i] = _squared_loss(begin, end, indices, targets, weights, features, x)
