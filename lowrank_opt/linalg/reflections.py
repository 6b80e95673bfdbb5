r"""Products of an even number of Householder reflections, in thin factors.

Reflections come in pairs: with unit vectors u, v and :math:`d = v - u`,

.. math:: (I - 2 u u^T)(I - 2 v v^T) - I = 2 u d^T - 2 d v^T - 2 |d|^2 u v^T,

each term of which is exactly zero at u = v, where a pair is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.linalg.scaling import normalize_columns, working_dtype


def reflections(vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return X, Y with :math:`X Y^T = H_1 H_2 \cdots H_r - I`, :math:`H_i = I - 2 u_i u_i^T`.

    Parameters
    ----------
    vectors : Tensor, shape (n, r)
        r even; their directions are the u. Of a pair with a negligible vector both are left out.

    Returns
    -------
    X, Y : Tensor, shapes (n, r)
        In the working dtype.

    Examples
    --------
    >>> X, Y = reflections(torch.eye(3, 2))
    >>> (torch.eye(3) + X @ Y.mT).diagonal()
    tensor([-1., -1.,  1.], dtype=torch.float64)
    """
    units = normalize_columns(vectors, dtype=working_dtype(vectors))
    u, v = units[:, 0::2], units[:, 1::2]
    both = u.detach().any(0) & v.detach().any(0)
    u, v = u * both, v * both
    d = v - u
    A = torch.stack((u, d), dim=2)
    B = torch.stack((2 * d - 2 * d.square().sum(0) * v, -2 * v), dim=2)
    lefts: list[Tensor] = []
    for k in range(A.shape[1]):
        X = A[:, k]
        # What the pairs before it make of the columns: they are applied to it one after another.
        for i in range(k - 1, -1, -1):
            X = X + A[:, i] @ (B[:, i].mT @ X)
        lefts.append(X)
    return torch.cat(lefts, dim=1), B.flatten(1)


def reflections_of(matrix: Tensor, count: int) -> Tensor:
    r"""Return directions of `count` reflections whose product is a given orthogonal matrix.

    A matrix that moves a space of dimension k is a product of k of them: the direction
    :math:`R x - x` of the vector that moves furthest is split off until nothing moves.

    Parameters
    ----------
    matrix : Tensor, shape (n, n)
        Orthogonal, float64.
    count : int
        Even, at least the rank of ``matrix - I``.

    Returns
    -------
    Tensor, shape (n, count)
        Missing pairs are equal, so that they do nothing.

    Examples
    --------
    >>> u = reflections_of(torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double(), 2)
    >>> X, Y = reflections(u)
    >>> (torch.eye(3) + X @ Y.mT).diagonal()
    tensor([-1., -1.,  1.], dtype=torch.float64)
    """
    R, n = matrix.clone(), len(matrix)
    eye = torch.eye(n, dtype=R.dtype, device=R.device)
    found: list[Tensor] = []
    for _ in range(count):
        moved = R - eye
        _, sigma, Vh = torch.linalg.svd(moved)
        if float(sigma[0]) < 64 * n * torch.finfo(R.dtype).eps:
            break
        u = moved @ Vh[0]
        u = u / torch.linalg.vector_norm(u)
        R = R - 2 * torch.outer(u, u @ R)
        found.append(u)
    free = eye[0]
    found += [free] * (count - len(found))
    return torch.stack(found, dim=1)
