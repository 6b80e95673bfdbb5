r"""Numba loops over entries that are ordered levels of a normal variable.

Entry k of row i has the score s, and the noise precision :math:`q^2 = \rho_i \gamma_j`; it is level
l where the variable is between the thresholds l and l + 1 of L + 1, the first and the last of
which are infinite.
"""

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.kernels.loops.compiler import njit
from lowrank_opt.kernels.loops.normal import draw_within, log_interval, slope_at

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@njit(nogil=True, cache=True)
def likelihood_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    levels: Ints,
    scores: Floats,
    rows: Floats,
    cols: Floats,
    thresholds: Floats,
    out: Floats,
) -> None:
    """Write the log-likelihood of each row, its gradient in the thresholds and its Hessian.

    Parameters
    ----------
    levels, scores : array, shape (nnz,)
        In the order of `indices`.
    rows, cols : array, shapes (m,) and (n,)
        Roots of the noise precisions.
    thresholds : array, shape (L + 1,)
    out : array, shape (m, 4 L + 4)
        Receives the log-likelihood of each level and a zero, then, for the L + 1 thresholds each,
        the gradient, the diagonal of the Hessian, and what is right of it.
    """
    T = len(thresholds)
    for i in range(first, last):
        own = out[i]
        own[:] = 0
        for k in range(pointers[i], pointers[i + 1]):
            q, low, s = rows[i] * cols[indices[k]], levels[k], np.float64(scores[k])
            a, b = (thresholds[low] - s) * q, (thresholds[low + 1] - s) * q
            logp = log_interval(a, b)
            own[low] += logp
            u = v = 0.0
            if low > 0:
                u = q * slope_at(a, logp)
                own[T + low] -= u
                own[2 * T + low] += u * (a * q - u)
            if low < T - 2:
                v = q * slope_at(b, logp)
                own[T + 1 + low] += v
                own[2 * T + 1 + low] -= v * (b * q + v)
            own[3 * T + low] += u * v


@njit(nogil=True, cache=True)
def latent_pass(
    first: int,
    last: int,
    pointers: Ints,
    indices: Ints,
    levels: Ints,
    scores: Floats,
    rows: Floats,
    cols: Floats,
    thresholds: Floats,
    uniform: Floats,
    out: Floats,
) -> None:
    """Write a draw of the normal variable of each entry, given its level; as `likelihood_pass`.

    Parameters
    ----------
    uniform : array, shape (nnz,)
        In [0, 1).
    out : array, shape (nnz,)
    """
    for i in range(first, last):
        for k in range(pointers[i], pointers[i + 1]):
            q, low, s = rows[i] * cols[indices[k]], levels[k], np.float64(scores[k])
            a, b = (thresholds[low] - s) * q, (thresholds[low + 1] - s) * q
            out[k] = s + draw_within(a, b, uniform[k]) / q
