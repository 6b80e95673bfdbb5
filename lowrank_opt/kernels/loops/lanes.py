"""Factorisations of eight small matrices side by side, the last axis one vector register wide.

Loops over one small matrix are too short to vectorise; the same step of eight matrices is one
instruction. A lane never sees its neighbours, so a matrix gives the same result in any company.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit

Floats = NDArray[np.floating]

LANES = 8
_FASTMATH = {"contract"}


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def factor(A: Floats, smallest: float, logdets: Floats) -> None:
    """Replace the lower triangles by L with ``A = L L^T``, reciprocals on the diagonal.

    Parameters
    ----------
    A : array, shape (D, D, 8), written
        Symmetric positive definite; only lower triangles are read.
    smallest : float
        Pivots below this share of their diagonal entry are rounding, and raised to it.
    logdets : array, shape (8,), written
    """
    D = len(A)
    floor = np.empty(LANES)
    logdets[:] = 0
    for p in range(D):
        for lane in range(LANES):
            floor[lane] = smallest * A[p, p, lane]
        for r in range(p):
            for c in range(r):
                for lane in range(LANES):
                    A[p, r, lane] -= A[p, c, lane] * A[r, c, lane]
            for lane in range(LANES):
                A[p, r, lane] *= A[r, r, lane]
        for c in range(p):
            for lane in range(LANES):
                A[p, p, lane] -= A[p, c, lane] * A[p, c, lane]
        for lane in range(LANES):
            pivot = A[p, p, lane]
            if pivot < floor[lane]:
                pivot = floor[lane]
            logdets[lane] += np.log(pivot)
            A[p, p, lane] = 1 / np.sqrt(pivot)


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def invert(L: Floats, inverse: Floats, C: Floats) -> None:
    """Set `inverse` to ``L^-1``, and the lower triangles of C to ``L^-T L^-1``.

    Parameters
    ----------
    L : array, shape (D, D, 8)
        As `factor` leaves it.
    inverse, C : array, shape (D, D, 8), written
        Lower triangles.
    """
    D = len(L)
    for c in range(D):
        for lane in range(LANES):
            inverse[c, c, lane] = L[c, c, lane]
        for p in range(c + 1, D):
            for lane in range(LANES):
                inverse[p, c, lane] = 0
            for r in range(c, p):
                for lane in range(LANES):
                    inverse[p, c, lane] -= L[p, r, lane] * inverse[r, c, lane]
            for lane in range(LANES):
                inverse[p, c, lane] *= L[p, p, lane]
    for p in range(D):
        for q in range(p + 1):
            for lane in range(LANES):
                C[p, q, lane] = 0
            for c in range(p, D):
                for lane in range(LANES):
                    C[p, q, lane] += inverse[c, p, lane] * inverse[c, q, lane]


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def solve(L: Floats, b: Floats, noise: Floats | None) -> None:
    """Replace b by ``A^-1 b``, plus ``L^-T noise``: a draw of covariance ``A^-1``.

    Parameters
    ----------
    L : array, shape (D, D, 8)
        As `factor` leaves it.
    b : array, shape (D, 8), written
    noise : array, shape (D, 8), or None
    """
    D = len(L)
    for p in range(D):
        for c in range(p):
            for lane in range(LANES):
                b[p, lane] -= L[p, c, lane] * b[c, lane]
        for lane in range(LANES):
            b[p, lane] *= L[p, p, lane]
    if noise is not None:
        for p in range(D):
            for lane in range(LANES):
                b[p, lane] += noise[p, lane]
    for p in range(D - 1, -1, -1):
        for c in range(p + 1, D):
            for lane in range(LANES):
                b[p, lane] -= L[c, p, lane] * b[c, lane]
        for lane in range(LANES):
            b[p, lane] *= L[p, p, lane]
