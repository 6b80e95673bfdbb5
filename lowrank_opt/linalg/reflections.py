r"""Products of an even number of Householder reflections, in thin factors.

Reflections come in pairs: with unit vectors u, v and :math:`d = v - u`,

.. math:: (I - 2 u u^T)(I - 2 v v^T) - I = 2 u d^T - 2 d v^T - 2 |d|^2 u v^T,

each term of which is exactly zero at u = v, where a pair is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.linalg.climbing import climb
from lowrank_opt.linalg.scaling import normalize_columns, working_dtype

# Rounds over all reflections before they climb together.
_SWEEPS = 3


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


def reflections_between(before: Tensor, moved: Tensor, count: int) -> Tensor:
    r"""Return directions of `count` reflections whose product R has A R = A + T, if any has.

    Such an R that moves a space of dimension k is a product of k of them: the direction
    :math:`T^T y` in which the rows differ most is reflected, after which :math:`A^T y` and its
    image agree and the rank of the difference is one less. No other number of parameters decides:
    directions in which A is small need not be told apart.

    Parameters
    ----------
    before, moved : Tensor, shape (m, n)
        A and T, float64.
    count : int
        Even.

    Returns
    -------
    Tensor, shape (n, count)
        As `reflections` takes them. What is left over is in pairs of equal ones, that do nothing.

    References
    ----------
    The proof of the theorem of Cartan and Dieudonné, for rows.

    Examples
    --------
    >>> A = torch.eye(3, dtype=torch.float64)
    >>> u = reflections_between(A, torch.diag(torch.tensor([-2.0, -2.0, 0.0])).double(), 2)
    >>> X, Y = reflections(u)
    >>> (A + X @ Y.mT).diagonal()
    tensor([-1., -1.,  1.], dtype=torch.float64)
    """
    A, T = before, moved
    _, sigma, Vh = torch.linalg.svd(A)
    rounding = 64 * max(A.shape) * torch.finfo(A.dtype).eps * float(sigma[0])
    found: list[Tensor] = []
    for _ in range(count):
        _, size, moves = torch.linalg.svd(T, full_matrices=False)
        if float(size[0]) < rounding:
            break
        u = moves[0]
        T = T - 2 * torch.outer((A + T) @ u, u)
        found.insert(0, u)
    if len(found) % 2:
        # Of what A has least.
        found.insert(0, Vh[-1])
    return torch.stack([*[Vh[-1]] * (count - len(found)), *found], dim=1)


def reflections_towards(slope: Tensor, start: Tensor) -> Tensor:
    r"""Return directions whose product of reflections R has a larger :math:`\langle M, R\rangle`.

    A local maximum: that of `start` where it is one.

    Parameters
    ----------
    slope : Tensor, shape (n, n)
        M, float64.
    start : Tensor, shape (n, count)
        Directions to begin with.

    Examples
    --------
    >>> u = reflections_towards(
    ...     torch.diag(torch.tensor([-1.0, -2.0, 3.0])).double(), torch.eye(3, 2)
    ... )
    >>> X, Y = reflections(u)
    >>> (torch.eye(3) + X @ Y.mT).diagonal()
    tensor([-1., -1.,  1.], dtype=torch.float64)
    """

    def value(vectors: Tensor) -> Tensor:
        X, Y = reflections(vectors)
        return ((slope @ Y) * X).sum()

    return climb(value, _swept(slope, start))


def _swept(slope: Tensor, start: Tensor) -> Tensor:
    """Replace one after the other by the best one between the others, an eigenvector."""
    units = list(normalize_columns(start, dtype=torch.float64).unbind(1))
    for _ in range(_SWEEPS):
        # <M, L H R> is <X, H> with X = L^T M R^T.
        X = slope
        for u in reversed(units[1:]):
            X = X - 2 * torch.outer(X @ u, u)
        for i in range(len(units)):
            units[i] = torch.linalg.eigh((X + X.mT) / 2).eigenvectors[:, 0]
            X = X - 2 * torch.outer(units[i], units[i] @ X)
            if i + 1 < len(units):
                X = X - 2 * torch.outer(X @ units[i + 1], units[i + 1])
    return torch.stack(units, dim=1)
