"""Subspaces as orthonormal bases: projecting out of them, and letting them grow."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.linalg.scaling import working_dtype
from lowrank_opt.linalg.svd import orthonormal_columns


def project_out(x: Tensor, basis: Tensor | None) -> Tensor:
    r"""Return :math:`(I - Q Q^T)\, x`, what x has outside of a subspace.

    Parameters
    ----------
    x : Tensor, shape (m, r)
    basis : Tensor, shape (m, a), or None
        Q, orthonormal to the precision of its own dtype; None stands for no subspace.

    Returns
    -------
    Tensor, shape (m, r)
        In the dtype of `x`. In float64 :math:`|Q^T y| \le 10^{-14} |x|`, also for a basis that was
        stored in float32.

    Notes
    -----
    Done twice: once leaves ``|Q^T Q - I| |Q^T x|``, 1e-7 for a stored basis in float32, and
    rounding relative to x where x is nearly inside; the second pass leaves the square of it.

    Examples
    --------
    >>> project_out(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [0.0]])).flatten()
    tensor([0., 4.])
    """
    if basis is None or basis.shape[1] == 0:
        return x
    Q = basis.to(x)
    y = x - Q @ (Q.mT @ x)
    return y - Q @ (Q.mT @ y)


def extend_basis(basis: Tensor | None, new: Tensor, *, rtol: float | None = None) -> Tensor:
    r"""Return an orthonormal basis :math:`[P,\ \mathrm{orth}((I - P P^T) A)]` of a grown subspace.

    Parameters
    ----------
    basis : Tensor, shape (n, b), or None
        P, orthonormal; its columns come first and stay what they are.
    new : Tensor, shape (n, k)
        A, whose columns are to be in the subspace.
    rtol : float, optional
        Directions of A outside of P with a singular value below ``rtol`` times the largest one of
        A count as inside already; by default ``eps max(n, k)`` of the dtype of A.

    Returns
    -------
    Tensor, shape (n, b + new directions)
        In float64.

    Examples
    --------
    >>> P = extend_basis(None, torch.tensor([[1.0], [1.0], [0.0]]))
    >>> extend_basis(P, torch.tensor([[2.0, 1.0], [2.0, 0.0], [0.0, 0.0]])).shape
    torch.Size([3, 2])
    """
    A = new.detach().to(working_dtype(new))
    n, k = A.shape
    P = A.new_zeros(n, 0) if basis is None else basis.detach().to(A)
    rtol = torch.finfo(new.dtype).eps * max(n, k) if rtol is None else rtol
    size = torch.linalg.matrix_norm(A, 2) if A.numel() else A.new_zeros(())
    U, sigma, _ = torch.linalg.svd(project_out(A, P), full_matrices=False)
    count = min(int((sigma > rtol * size).sum()), n - P.shape[1])
    fresh = project_out(U[:, :count], P)
    return torch.cat((P, orthonormal_columns(fresh, count)), dim=1) if count else P
