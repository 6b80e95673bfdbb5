r"""Upper bounds on the leading eigenvalues of a symmetric matrix, by one Cholesky factorization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

U = 2.0**-53
TINY = float(np.finfo(np.float64).tiny)
# Below this size, or for many values, a full eigenvalue decomposition is as fast as Lanczos.
_SMALL, _SHARE = 128, 0.2


def gamma(count: int) -> float:
    """Return the relative error of an inner product of this length, in any order of summation.

    Examples
    --------
    >>> gamma(1000) < 1.2e-13
    True
    """
    return count * U / (1 - count * U)


def eigenvalue_bounds(A: Floats, error: float, count: int) -> Floats:
    r"""Bound the `count` largest eigenvalues of a positive semidefinite matrix from above.

    Parameters
    ----------
    A : array, shape (n, n)
        float64; the lower triangle counts.
    error : float
        Bound on the spectral norm of the difference between A and the matrix that is meant.
    count : int
        In 1..n.

    Returns
    -------
    array, shape (count,)
        Decreasing, nonnegative.

    Notes
    -----
    With approximate eigenpairs :math:`(d_i, v_i)`, let :math:`C = \mathrm{diag}(d_i - d_k)`,
    i < k = `count`, and :math:`B = A - V C V^T`: all leading eigenvalues lowered to the last
    one. Weyl: :math:`\lambda_i(A) \le \lambda_i(V C V^T) + \lambda_1(B)`; Ostrowski:
    :math:`\lambda_i(V C V^T) \le \|V^T V\| (d_i - d_k)`; and a Cholesky factorization of
    :math:`s I - B` that runs to its end proves :math:`\lambda_1(B) \le s` up to a rounding term
    [Rump 2006]. How good the eigenpairs are decides how tight the bounds are, nothing else.

    References
    ----------
    S. M. Rump, Verification of positive definiteness, BIT 46 (2006), theorem 2.3.

    Examples
    --------
    >>> bounds = eigenvalue_bounds(np.diag([1.0, 4.0, 9.0]), 0.0, 2)
    >>> bool((bounds >= [9.0, 4.0]).all() and (bounds < [9.0 + 1e-12, 4.0 + 1e-12]).all())
    True
    """
    d, V = _approximate(A, count)
    excess = np.maximum(d[:-1] - d[-1], 0.0)
    W = V[:, :-1] * np.sqrt(excess)
    B = A - W @ W.T
    rounding = (gamma(count + 8) * float(np.sum(W * W)) + 2 * U * float(np.linalg.norm(A))) * 2
    stretch = float(np.abs(V.T @ V).sum(axis=1).max()) + gamma(len(A) + 8) * 2 * count
    last = _largest_above(B, float(d[-1]), float(d[0])) + rounding
    bounds = np.append(excess * stretch, 0.0) + last + error
    return np.maximum.accumulate(bounds[::-1])[::-1] * (1 + 16 * U)


def _approximate(A: Floats, count: int) -> tuple[Floats, Floats]:
    """Return nearly the leading eigenpairs, decreasing; nothing is proved about them."""
    n = len(A)
    if n > _SMALL and count < _SHARE * n:
        from scipy.sparse.linalg import ArpackError, eigsh

        start = np.random.default_rng(0).standard_normal(n)
        try:
            d, V = eigsh(A, k=count, v0=start, tol=1e-12)
            order = np.argsort(-d)
            return d[order], V[:, order]
        except ArpackError:
            pass
    d, V = np.linalg.eigh(A)
    return d[::-1][:count], V[:, ::-1][:, :count]


def _largest_above(B: Floats, estimate: float, size: float) -> float:
    """Bound the largest eigenvalue of B from above, near an estimate; `size` is that of A."""
    slack = 16 * len(B) * U
    estimate = max(estimate, 0.0)
    while not _is_above(s := estimate + slack * size, B):
        slack *= 10
    # R^T R = s I - B + E with |E_ij| <= c |R|_i^T |R|_j, so that the norm of E is below c times
    # the trace of s I - B, and s minus a diagonal entry is rounded once.
    n = len(B)
    diagonal = np.abs(B.diagonal())
    trace = n * s + float(diagonal.sum())
    c = gamma(n + 2) / (1 - gamma(n + 2))
    return s + (c * trace + 2 * U * (s + float(diagonal.max()))) * (1 + 16 * U + gamma(n))


def _is_above(s: float, B: Floats) -> bool:
    """Return whether ``s I - B`` has a Cholesky factorization in floating point."""
    shifted = -B
    shifted[np.diag_indices(len(B))] += s
    try:
        return bool(np.isfinite(np.linalg.cholesky(shifted).diagonal()).all())
    except np.linalg.LinAlgError:
        return False
