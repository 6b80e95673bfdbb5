r"""The rotation R within a radius that brings rows A nearest to A + T, as what it adds, R - I.

Without a radius that is the orthogonal Procrustes problem. With one, :math:`\|R - I\|_2 \le \rho`,
it has a solution with A R = A + T if and only if the rows say so,

.. math:: T A^T + A T^T + T T^T = 0, \qquad T T^T \preceq \rho^2 A A^T, \qquad \rho < 2.

*Necessary*: :math:`(A + T)(A + T)^T = A R R^T A^T`, and :math:`|T^T y| = |(R - I)^T A^T y|`.
*Sufficient*: by the first condition :math:`A^T y \mapsto (A + T)^T y` is an isometry V of the row
space of A, by the second :math:`|Vx - x| \le \rho |x|`, so that :math:`I + V` is injective and
:math:`(I + V) x \mapsto (I - V) x` is a skew map K between subspaces, of norm at most
:math:`t = \tan(\arcsin(\rho / 2))`. By the theorem of Davis, Kahan and Weinberger it has an
extension to the whole space of the same norm, the central one of which is skew as well; its Cayley
transform is :math:`R^T`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_opt.errors import TargetError
from lowrank_opt.linalg.climbing import climb
from lowrank_opt.linalg.rotations import (
    cayley,
    polished,
    rotation,
    skew_entries,
    skew_matrices,
    skew_of_turn,
)

# Below this singular value of I + V a subspace turns half round: Cayley's map has lost its digits.
_HALF_TURN = 1e-7
# Relative to A: larger ones stand for their direction, and smaller residuals are rounding.
_LARGEST, _NEAR = 1e30, 1e-6


def turn_between(before: Tensor, moved: Tensor, radius: float | None = None) -> Tensor:
    r"""Return :math:`D = R - I` of a rotation with A D near T and :math:`\|D\|_2 \le` `radius`.

    Where a rotation gives T exactly, it is found, to rounding relative to T. Without a radius, or
    where the nearest of all rotations is within it, :math:`\|A D - T\|_F` is the least; otherwise
    a local minimum. Where A leaves R free, the extension that moves least.

    Parameters
    ----------
    before, moved : Tensor, shape (m, b)
        A and T, in float64.
    radius : float, optional
        In (0, 2).

    Returns
    -------
    Tensor, shape (b, b)
        ``|R^T R - I|`` is a few units of rounding; the determinant of R is one.

    References
    ----------
    Schönemann (1966); Davis, Kahan and Weinberger (1982).

    Examples
    --------
    >>> A = torch.eye(1, 2, dtype=torch.float64)
    >>> turn_between(A, A.flip(1) - A)
    tensor([[-1.,  1.],
            [-1., -1.]], dtype=torch.float64)
    """
    # Lengths do not matter, and their squares may overflow. Of a far larger T only its direction.
    A = before / before.abs().amax().clamp_min(torch.finfo(before.dtype).tiny)
    T = moved / before.abs().amax().clamp_min(torch.finfo(before.dtype).tiny)
    T = T / (T.abs().amax() / _LARGEST).clamp_min(1.0)
    D = polished(_nearest(A, A + T, radius))
    # Near a solution only, where least squares are linear, and R has too few digits of D.
    if float(torch.linalg.matrix_norm(A @ D - T)) < _NEAR * float(torch.linalg.matrix_norm(A)):
        D = _refined(A, T, _refined(A, T, D))
    return D if radius is None else _within(A.mT @ (A + T), D, radius)


def turn_towards(slope: Tensor, radius: float | None = None) -> Tensor:
    r"""Return :math:`D = R - I` of a rotation with a large :math:`\langle M, R \rangle`.

    The largest without a radius, or where that rotation is within it; otherwise a local maximum.

    Parameters
    ----------
    slope : Tensor, shape (b, b)
        M, in float64.
    radius : float, optional

    Examples
    --------
    >>> turn_towards(torch.eye(2, dtype=torch.float64)).abs().max()
    tensor(0., dtype=torch.float64)
    """
    M = slope / slope.abs().amax().clamp_min(torch.finfo(slope.dtype).tiny)
    if not bool(M.any()):
        return torch.zeros_like(M)
    D = polished(_proper(M) - _eye(M))
    return D if radius is None else _within(M, D, radius)


def _nearest(A: Tensor, B: Tensor, radius: float | None) -> Tensor:
    """Return R - I of the Procrustes problem, extended to what A leaves free."""
    U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
    k = int((sigma > max(A.shape) * torch.finfo(A.dtype).eps * sigma[:1]).sum())
    P = Vh[:k].mT
    # R^T P = Q for the isometry with the largest <Q, B^T U Sigma>.
    N = B.mT @ (U[:, :k] * sigma[:k])
    if k == A.shape[1]:
        return _proper(P @ N.mT) - _eye(N)
    W, _, Zh = torch.linalg.svd(N, full_matrices=False)
    return _extended(P, W @ Zh, radius)


def _proper(M: Tensor) -> Tensor:
    """Return the rotation with the largest inner product with M (Kabsch, 1976)."""
    U, _, Vh = torch.linalg.svd(M)
    if float(torch.linalg.det(U @ Vh)) < 0:
        U = torch.cat((U[:, :-1], -U[:, -1:]), dim=1)
    return U @ Vh


def _extended(P: Tensor, Q: Tensor, radius: float | None) -> Tensor:
    """Return R - I of a rotation with R^T P = Q, for orthonormal columns fewer than rows."""
    k = P.shape[1]
    U, s, Zh = torch.linalg.svd(P + Q)
    if k and float(s[-1]) < _HALF_TURN:
        return _aligned(P, Q)
    F, N = U[:, :k], U[:, k:]
    Y = ((P - Q) @ Zh.mT) / s
    A, C = F.mT @ Y, N.mT @ Y
    A = (A - A.mT) / 2
    least = float(torch.linalg.matrix_norm(Y, 2))
    t = least if radius is None else max(least, math.tan(math.asin(radius / 2)))
    h, V = torch.linalg.eigh(t * t * _eye(A) - A.mT @ A)
    # C is the smaller of both where the root vanishes.
    root = torch.where(h > torch.finfo(h.dtype).eps * t * t, h.clamp_min(0).rsqrt(), 0.0)
    Z = C @ (V * root) @ V.mT
    X = -Z @ A @ Z.mT
    K = torch.cat((torch.cat((A, -C.mT), dim=1), torch.cat((C, X), dim=1)))
    return cayley(U @ ((K - K.mT) / 2) @ U.mT).mT


def _aligned(P: Tensor, Q: Tensor) -> Tensor:
    """Return R - I with R^T P = Q, nearest to I between what is orthogonal to P and to Q."""
    N, M = (torch.linalg.svd(x)[0][:, x.shape[1] :] for x in (P, Q))
    inner = torch.linalg.svd(M.mT @ N)
    turn = inner[0] @ inner[2]
    turned = (Q @ P.mT + M @ turn @ N.mT).mT
    if float(torch.linalg.det(turned)) < 0:
        flipped = torch.cat((inner[0][:, :-1], -inner[0][:, -1:]), dim=1)
        turned = (Q @ P.mT + M @ flipped @ inner[2] @ N.mT).mT
    return turned - _eye(turned)


def _refined(A: Tensor, T: Tensor, D: Tensor) -> Tensor:
    """Take a Newton step of the least squares problem: digits relative to D, not to R."""
    C, E = A + A @ D, T - A @ D
    h, V = torch.linalg.eigh(C.mT @ C)
    gap = h.unsqueeze(1) + h.unsqueeze(0)
    S = V.mT @ (C.mT @ E - E.mT @ C) @ V
    S = torch.where(gap > len(h) * torch.finfo(h.dtype).eps * h[-1:], S / gap, 0.0)
    K = V @ S @ V.mT
    step = cayley((K.mT - K) / 4)
    return polished(D + step + D @ step)


def _within(M: Tensor, D: Tensor, radius: float) -> Tensor:
    """Return D itself if it is within the radius, else a local maximum of <M, D> there."""
    if float(torch.linalg.matrix_norm(D, 2)) <= radius * (1 + 8 * torch.finfo(D.dtype).eps):
        return D
    K = _skew_near(D, radius)
    found = (rotation(K, "cayley", radius), _climbed(M, skew_entries(K), radius))
    return max(found, key=lambda x: float((M * x).sum()))


def _skew_near(D: Tensor, radius: float) -> Tensor:
    """Return the parameters of the rotation with the angles of `D` cut off at the radius."""
    away = skew_matrices(torch.ones(len(D) * (len(D) - 1) // 2, device=D.device), len(D))
    for size in (0.0, 1e-3, 1e-2, 1e-1):
        try:
            further = rotation(size * away)
            return skew_of_turn(D + further + D @ further, "cayley", radius)
        except TargetError:
            # A half turn is next to rotations that are none.
            continue
    return torch.zeros_like(D)


def _climbed(M: Tensor, entries: Tensor, radius: float) -> Tensor:
    """Return the rotation to which climbing <M, R> leads from entries inside the radius.

    On the boundary the map from entries to rotations folds, and has no direction to climb in.
    """
    bound, eye = math.tan(math.asin(radius / 2)), _eye(M)

    def turned(x: Tensor) -> Tensor:
        # As `rotation` does it, for parameters of moderate size.
        K = skew_matrices(x, len(M))
        S = 2 * bound * torch.linalg.solve_ex(eye + K.mT @ K, K, left=False).result
        return -2 * torch.linalg.solve_ex(eye + S, S).result

    x = climb(lambda x: (M * turned(x)).sum(), 0.8 * entries)
    return rotation(skew_matrices(x, len(M)), "cayley", radius)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
