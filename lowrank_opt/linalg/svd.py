"""Singular value decompositions of products, sparse matrices and completions of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.linalg.scaling import working_dtype

if TYPE_CHECKING:
    import scipy.sparse as sp
    from scipy.sparse.linalg import LinearOperator


def product_svd(left: Tensor, scale: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the thin SVD of ``left diag(scale) right^T`` without forming the product.

    Two thin QR factorizations and one SVD of the small core: :math:`O((m + n) r^2)`.

    Parameters
    ----------
    left : Tensor, shape (..., m, r)
    scale : Tensor, shape (..., r)
    right : Tensor, shape (..., n, r)

    Returns
    -------
    U : Tensor, shape (..., m, min(m, r))
    sigma : Tensor, shape (..., min(m, n, r))
        Decreasing; computed in the working dtype (float64 where the device has it). All infinite
        if the product overflows it or a factor is infinite, all NaN if one is NaN.
    V : Tensor, shape (..., n, min(n, r))
        `U` and `V` have orthonormal columns even where `sigma` is zero. Both are cut to the
        length of `sigma`.

    Examples
    --------
    >>> L, s, R = torch.ones(3, 1), torch.tensor([2.0]), torch.ones(4, 1)
    >>> round(float(product_svd(L, s, R)[1]), 6)
    6.928203
    """
    dtype = working_dtype(left)
    (left, a), (right, b) = _unit(left.to(dtype), dim=-2), _unit(right.to(dtype), dim=-2)
    size = _product(scale.to(dtype).abs(), a.squeeze(-2), b.squeeze(-2))
    size, peak = _unit(size, dim=-1)
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right)
    core = (R_left * (size * scale.sign()).unsqueeze(-2)) @ R_right.mT
    fine = core.isfinite().all(-1).all(-1)[..., None]
    # The SVD raises on what is not finite: a norm that is infinite or NaN tells more.
    U, sigma, Vh = torch.linalg.svd(core.where(fine.unsqueeze(-1), 0.0), full_matrices=False)
    other = torch.where(peak.isinf(), peak, torch.nan)
    return Q_left @ U, (sigma * peak).where(fine, other), Q_right @ Vh.mT


def _unit(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Divide by the largest entry along `dim`, which neither overflows nor underflows."""
    if x.shape[dim] == 0:
        return x, x.new_ones(())
    peak = x.abs().amax(dim=dim, keepdim=True)
    peak = torch.where(peak > 0, peak, 1.0)
    return x / peak, peak


def _product(*factors: Tensor) -> Tensor:
    """Multiply three nonnegative tensors entry by entry, largest by smallest first."""
    low, middle, high = torch.stack(factors).sort(dim=0).values.unbind()
    return (low * high) * middle


def orthonormal_columns(x: Tensor, count: int) -> Tensor:
    """Return `count` orthonormal columns whose first ones span the columns of `x`.

    Parameters
    ----------
    x : Tensor, shape (m, k)
        At most `count` columns; need not have full rank.
    count : int
        At most m.

    Returns
    -------
    Tensor, shape (m, count)
        In the working dtype.

    Examples
    --------
    >>> Q = orthonormal_columns(torch.zeros(3, 1), 2)
    >>> torch.allclose(Q.mT @ Q, torch.eye(2, dtype=Q.dtype))
    True
    """
    padded = torch.nn.functional.pad(x.to(working_dtype(x)), (0, count - x.shape[1]))
    return torch.linalg.qr(padded).Q


_SPARE_COLUMNS, _SUBSPACE_STEPS = 32, 60


def leading_svd(matrix: Tensor | sp.spmatrix | sp.sparray, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `k` leading singular triples of a dense or sparse matrix.

    Parameters
    ----------
    matrix : Tensor, or scipy sparse matrix or array, shape (m, n)
        A sparse torch tensor is taken too. A sparse matrix is never made dense, unless its
        smaller side is so short that k triples would fill it.
    k : int
        At least 1; cut to min(m, n).

    Returns
    -------
    U : Tensor, shape (m, k)
    sigma : Tensor, shape (k,)
        Decreasing, float64.
    V : Tensor, shape (n, k)

    Notes
    -----
    Sparse matrices go through ARPACK (`scipy.sparse.linalg.svds`) from a fixed start vector, to
    machine precision, so results repeat. Where it does not converge, because many leading values
    are the same to the last bits, subspace iteration gives triples in their span: its values are at
    most the true ones, and less by a share of about ``(sigma_{k + 33} / sigma_k)^120``.

    Examples
    --------
    >>> U, sigma, V = leading_svd(torch.diag(torch.tensor([1.0, 5.0, 3.0])), 2)
    >>> sigma
    tensor([5., 3.], dtype=torch.float64)
    """
    if isinstance(matrix, Tensor) and matrix.layout == torch.strided:
        U, sigma, Vh = torch.linalg.svd(matrix.to(working_dtype(matrix)), full_matrices=False)
        return U[:, :k], sigma[:k], Vh[:k].mT
    return _sparse_svd(to_scipy(matrix), k)


def to_scipy(matrix: Tensor | sp.spmatrix | sp.sparray) -> sp.csr_array:
    """Return a sparse matrix of torch or scipy as a float64 array of scipy."""
    import scipy.sparse as sparse

    if isinstance(matrix, Tensor):
        coo = matrix.detach().cpu().to_sparse_coo().coalesce()
        rows, cols = coo.indices().numpy()
        return sparse.csr_array((coo.values().double().numpy(), (rows, cols)), tuple(matrix.shape))
    return sparse.csr_array(matrix).astype("float64")


def _sparse_svd(matrix: sp.csr_array, k: int) -> tuple[Tensor, Tensor, Tensor]:
    import numpy as np
    from scipy.sparse.linalg import ArpackError, svds

    short = min(matrix.shape)
    # Stored zeros count as none: ARPACK refuses a product that vanishes.
    if matrix.count_nonzero() == 0:
        return _zero_svd(matrix.shape[0], matrix.shape[1], k)
    if short <= k + 1:
        # At most k + 1 rows or columns: the dense array is no larger than the factors.
        return leading_svd(torch.from_numpy(matrix.toarray()), k)
    start = np.random.default_rng(0).standard_normal(short)
    try:
        U, sigma, Vh = svds(matrix, k=k, v0=start)
    except ArpackError:
        # Leading values that are tied to the last bits, as gradients at an optimum have them.
        return subspace_svd(matrix, k)
    order = np.argsort(-sigma)
    return (
        torch.from_numpy(U[:, order].copy()),
        torch.from_numpy(sigma[order].copy()),
        torch.from_numpy(Vh[order].T.copy()),
    )


def subspace_svd(matrix: sp.csr_array | LinearOperator, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `k` leading triples by subspace iteration with more columns than are asked for.

    Slower than ARPACK, but it ends: values that are tied to the last bits do not hold it up.

    References
    ----------
    Halko, Martinsson and Tropp (2011), Finding structure with randomness, algorithm 4.4.
    """
    import numpy as np

    width = min(k + _SPARE_COLUMNS, *matrix.shape)
    V = np.random.default_rng(0).standard_normal((matrix.shape[1], width))
    for _ in range(_SUBSPACE_STEPS):
        V, _ = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ V)[0])
    U, sigma, Wh = torch.linalg.svd(torch.from_numpy(matrix @ V), full_matrices=False)
    return U[:, :k], sigma[:k], torch.from_numpy(V) @ Wh[:k].mT


def _zero_svd(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    count = min(k, m, n)
    U, V = torch.eye(m, count, dtype=torch.float64), torch.eye(n, count, dtype=torch.float64)
    return U, U.new_zeros(count), V
