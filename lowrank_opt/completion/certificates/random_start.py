r"""An upper bound on the largest singular value of a large sparse matrix, from random starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_opt.completion.certificates.eigenvalue_bounds import TINY, U, gamma
from lowrank_opt.completion.certificates.part_matrix import PartMatrix
from lowrank_opt.linalg.svd import subspace_svd

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Matrix = sp.csr_array | NDArray[np.float64] | PartMatrix

_STARTS, _STEPS, _SHARE = 16, 100, 0.1
_POWERS = 20


def random_start_bound(matrix: Matrix, generator: torch.Generator | None) -> tuple[float, float]:
    r"""Bound :math:`\sigma_1` by Chebyshev polynomials of the Gram matrix at Gaussian starts.

    Parameters
    ----------
    matrix : scipy sparse array or array, shape (m, n)
        float64, largest modulus about one.
    generator : torch.Generator or None

    Returns
    -------
    bound : float
        About 0.1 % above :math:`\sigma_1`.
    failure_probability : float
        Over the draw of the starts: 3e-18.

    Notes
    -----
    A start x has :math:`|v_1^T x| < 0.1` with a probability below 0.08; with 16 starts, all of
    them with one below 3e-18. With an estimate s of :math:`\sigma_1^2`, let
    :math:`\xi = 2 \sigma_1^2 / s - 1` and :math:`z = \xi + \sqrt{\xi^2 - 1}`. If :math:`\xi > 1`,
    k steps of the recurrence :math:`x_{j+1} = 2 (2 Y^T Y / s - I) x_j - x_{j-1}` enlarge the part
    along :math:`v_1` by at least :math:`z^k / 2`, minus the roundings :math:`f_j` of the steps,
    enlarged by at most :math:`k z^{k - j}`; and it cannot exceed the norm that is observed. No
    estimate is trusted: a poor one gives a loose bound.

    References
    ----------
    J. Kuczynski and H. Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start, SIAM J. Matrix Anal. Appl. 13 (1992), section 3.
    """
    # Another start in another process would be a start of no matrix: they agree on a seed.
    seed = torch.randint(2**62, (), generator=generator)
    if isinstance(matrix, PartMatrix):
        seed = matrix.part.largest(seed)
    agreed = torch.Generator().manual_seed(int(seed))
    x = torch.randn(matrix.shape[1], _STARTS, generator=agreed, dtype=torch.float64).numpy()
    squares = _squares_above(matrix)
    s, gain = _estimate(matrix) ** 2, math.nan
    # With an estimate far too small, rounding errors grow until they could hide the start.
    while s < squares and math.isnan(gain := _gain(matrix, x, s, squares)):
        s *= 1.5
    if math.isnan(gain):
        return math.sqrt(squares) * (1 + 4 * U), 0.0
    xi = (gain + 1 / gain) / 2
    return math.sqrt((xi + 1) / 2 * s) * (1 + 16 * U), (0.8 * _SHARE) ** _STARTS


def _squares_above(matrix: Matrix) -> float:
    if isinstance(matrix, PartMatrix):
        return matrix.squares() * (1 + gamma(matrix.count + 8))
    data = matrix.ravel() if isinstance(matrix, np.ndarray) else np.asarray(matrix.data)
    return float(np.dot(data, data)) * (1 + gamma(data.size + 8))


def _gain(matrix: Matrix, x: NDArray[np.float64], s: float, squares: float) -> float:
    """Return a bound on z, at least 1; NaN if roundings could hide the start."""
    # Of one step, relative to the norms of the two vectors before it.
    rounding = 8 * gamma(sum(_longest(matrix)) + 8) * (squares / s + 1)
    before, now = x, 2 / s * (matrix.T @ (matrix @ x)) - x
    noise = rounding * np.linalg.norm(before, axis=0)
    for _ in range(_STEPS - 1):
        noise += rounding * (np.linalg.norm(now, axis=0) + np.linalg.norm(before, axis=0))
        before, now = now, 4 / s * (matrix.T @ (matrix @ now)) - 2 * now - before
    part = _SHARE / 2 - _STEPS * float(noise.max())
    if not part > 0:
        return math.nan
    growth = float(np.linalg.norm(now, axis=0).max()) * (1 + gamma(len(now) + 8)) / part
    return max(1.0, growth) ** (1 / _STEPS) * (1 + 16 * U)


def _estimate(matrix: Matrix) -> float:
    """Return nearly the largest singular value; nothing is proved about it."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, aslinearoperator, svds

    if isinstance(matrix, PartMatrix) and matrix.cut:
        return _estimate_by_products(matrix)
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    if isinstance(matrix, PartMatrix):
        matrix = LinearOperator(
            matrix.shape,
            matvec=matrix.__matmul__,
            rmatvec=matrix.T.__matmul__,
            dtype=np.float64,
        )
    try:
        return float(svds(matrix, k=1, v0=start, tol=1e-6, return_singular_vectors=False)[0])
    except ArpackError:
        # Values tied to the last bits.
        return float(subspace_svd(aslinearoperator(matrix), 1)[1][0])


def _estimate_by_products(matrix: PartMatrix) -> float:
    """Return what `_estimate` does, with vectors of the columns alone."""
    n = matrix.shape[1]
    x = np.random.default_rng(0).standard_normal((n, min(_STARTS, n)))
    for _ in range(_POWERS):
        x = np.linalg.qr(matrix.T @ (matrix @ x))[0]
    top = np.linalg.eigvalsh(x.T @ (matrix.T @ (matrix @ x)))[-1]
    return math.sqrt(max(float(top), TINY))


def _longest(matrix: Matrix) -> tuple[int, int]:
    """Return the largest numbers of entries in a row and in a column."""
    if isinstance(matrix, PartMatrix):
        return matrix.longest()
    if isinstance(matrix, np.ndarray):
        return matrix.shape
    csr = matrix.tocsr()
    by_column = np.bincount(csr.indices, minlength=1)
    return int(np.diff(csr.indptr).max()), int(by_column.max())
