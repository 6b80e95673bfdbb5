r"""Rotations from free skew matrices, written as what they add to the identity.

:math:`D = R - I` is exactly zero at :math:`S = 0`, and small rotations keep their digits. With a
radius, :math:`\|R - I\|_2 \le \rho < 2` holds for every finite parameter: eigenvalues of S are
:math:`i t`, those of R are :math:`e^{i \theta}`, and :math:`|e^{i\theta} - 1| = 2 |\sin(\theta/2)|`
with :math:`t = \tan(\theta / 2)` for the Cayley map and :math:`t = \theta` for the exponential one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lowrank_opt.errors import TargetError
from lowrank_opt.linalg.contraction import contraction, invert_contraction

RotationMap = Literal["cayley", "exponential"]

# Without a radius, larger skew matrices count as scaled down to these row sums of moduli. Beyond
# the first, Cayley's solve leaves less than half the digits; the second belongs to the halvings.
_LARGEST: Mapping[str, float] = {"cayley": 1e6, "exponential": 512.0}
# The diagonal Padé approximant of order 6 of the exponential: even and odd coefficients.
_EVEN = (1.0, 5 / 44, 1 / 792, 1 / 665280)
_ODD = (1 / 2, 1 / 66, 1 / 15840, 0.0)
# Halvings for skew matrices of norm at most pi, and for free ones: exact to a norm of 512.
_BOUNDED, _FREE = 3, 10


def skew_matrices(entries: Tensor, size: int) -> Tensor:
    """Return skew matrices from their entries below the diagonal, row by row; in float64.

    Parameters
    ----------
    entries : Tensor, shape (..., size (size - 1) / 2)
    size : int

    Examples
    --------
    >>> skew_matrices(torch.tensor([2.0]), 2)
    tensor([[ 0., -2.],
            [ 2.,  0.]], dtype=torch.float64)
    """
    rows, cols = torch.tril_indices(size, size, -1, device=entries.device)
    x = entries.double()
    lower = x.new_zeros(*x.shape[:-1], size * size)
    lower = lower.index_add(-1, rows * size + cols, x).unflatten(-1, (size, size))
    return lower - lower.mT


def skew_entries(matrices: Tensor) -> Tensor:
    """Return the entries below the diagonal, row by row: what `skew_matrices` takes."""
    size = matrices.shape[-1]
    rows, cols = torch.tril_indices(size, size, -1, device=matrices.device)
    return matrices[..., rows, cols]


def rotation(skew: Tensor, kind: RotationMap = "cayley", radius: float | None = None) -> Tensor:
    r"""Return :math:`R - I` for rotations R given by free skew matrices K.

    Without a radius R is :math:`(I - K)(I + K)^{-1}` or :math:`\exp K`, of K scaled down to row
    sums of 1e6 or 512 where they are larger; with one, K is replaced by
    :math:`S = 2 c K (I + K^T K)^{-1}` first, whose norm is at most the c that belongs to the radius
    and takes every value up to it.

    Parameters
    ----------
    skew : Tensor, shape (..., b, b)
        Skew; any finite values, in float64.
    kind : {"cayley", "exponential"}
    radius : float, optional
        Bound on the spectral norm of the result, in (0, 2).

    Returns
    -------
    Tensor, shape (..., b, b)
        ``|R^T R - I|`` is a few units of rounding of float64, for every parameter.

    Examples
    --------
    >>> D = rotation(skew_matrices(torch.tensor([1.0]), 2))
    >>> (torch.eye(2) + D).round(decimals=6)
    tensor([[ 0.,  1.],
            [-1.,  0.]], dtype=torch.float64)
    """
    S = _capped(skew, _LARGEST[kind]) if radius is None else _within(skew, bound_of(radius, kind))
    if kind == "cayley":
        return polished(cayley(S))
    return polished(_exponential(S, _FREE if radius is None else _BOUNDED))


def bound_of(radius: float, kind: RotationMap) -> float:
    """Return the largest norm of a skew matrix whose rotation is within `radius` of the identity.

    Examples
    --------
    >>> round(bound_of(1.0, "cayley"), 4), round(bound_of(1.0, "exponential"), 4)
    (0.5774, 1.0472)
    """
    half = math.asin(radius / 2)
    return math.tan(half) if kind == "cayley" else 2 * half


def skew_of(rotations: Tensor, kind: RotationMap, radius: float | None = None) -> Tensor:
    """Return skew matrices that `rotation` maps to given rotations, within the radius to rounding.

    Parameters
    ----------
    rotations : Tensor, shape (..., b, b)
        Orthogonal, float64.
    kind : {"cayley", "exponential"}
    radius : float, optional

    Raises
    ------
    TargetError
        If a rotation has the eigenvalue -1, which neither map reaches (of finite parameters).

    Examples
    --------
    >>> R = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    >>> skew_entries(skew_of(R, "cayley"))
    tensor([1.], dtype=torch.float64)
    """
    eye = torch.eye(rotations.shape[-1], dtype=rotations.dtype, device=rotations.device)
    return skew_of_turn(rotations - eye, kind, radius)


def skew_of_turn(turns: Tensor, kind: RotationMap, radius: float | None = None) -> Tensor:
    """Return `skew_of` of rotations given by ``R - I``: small ones keep their digits.

    Examples
    --------
    >>> D = rotation(skew_matrices(torch.tensor([1e-20]), 2))
    >>> skew_entries(skew_of_turn(D, "cayley"))
    tensor([1.0000e-20], dtype=torch.float64)
    """
    D = turns
    eye = torch.eye(D.shape[-1], dtype=D.dtype, device=D.device)
    away = torch.linalg.svdvals(D + 2 * eye)[..., -1]
    if bool((away < 1e-7).any()):
        raise TargetError(
            "a rotation of these maps has no eigenvalue -1; got one, a half turn or a reflection: "
            'use map="householder", or rotate less'
        )
    # The root R^(1/2) = polar(I + R) has the eigenvectors of R, and a skew part i sin(theta / 2)
    # that tells all angles apart. Of angles below a right one R's own skew part does, with all
    # digits of small ones. Functions of Hermitian matrices are exact where eigenvalues repeat.
    U, _, Wh = torch.linalg.svd(D + 2 * eye)
    small = torch.linalg.matrix_norm(D, 2)[..., None, None] < 1
    told = torch.where(small, D, U @ Wh)
    V = torch.linalg.eigh(1j * (told - told.mT) / 2).eigenvectors
    d = torch.linalg.vecdot(V, D.to(V.dtype) @ V, dim=-2)
    # tan(theta / 2) of d = exp(i theta) - 1, with all its digits near 0 and near half turns.
    far = d.real < -1
    t = torch.where(far, -d.real, d.imag) / torch.where(far, d.imag, 2 + d.real)
    # The Cayley map turns against the exponential: (1 + i t) / (1 - i t) = exp(2 i atan t).
    size = t if kind == "cayley" else -2 * torch.atan(t)
    if radius is not None:
        size = invert_contraction(size / bound_of(radius, kind))
    return (V @ ((-1j * size).unsqueeze(-1) * V.mH)).real


def _capped(K: Tensor, largest: float) -> Tensor:
    # By the largest entry first: a sum of entries of 1e308 overflows.
    peak = K.detach().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1.0)
    size = (K / peak).abs().sum(dim=-1).amax(dim=-1)[..., None, None]
    return K / peak * (largest / torch.maximum(size, largest / peak))


def _within(K: Tensor, bound: float) -> Tensor:
    S = contraction(K)
    return bound * (S - S.mT) / 2


def cayley(S: Tensor) -> Tensor:
    """Return ``(I - S) (I + S)^-1 - I = -2 S (I + S)^-1``; I + S has no singular value below one.

    Examples
    --------
    >>> cayley(skew_matrices(torch.tensor([1.0]), 2))
    tensor([[-1.,  1.],
            [-1., -1.]], dtype=torch.float64)
    """
    c = S.detach().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1.0)
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return -2 * (S / c) @ torch.linalg.inv_ex(eye / c + S / c).inverse


def _exponential(S: Tensor, halvings: int) -> Tensor:
    """Return ``exp(S) - I`` by a Padé approximant of S scaled down, and squarings.

    With p the even and q the odd part of the numerator, p + q over p - q is orthogonal for every
    skew S. The quotient is exp to 1e-16 up to a norm of 1/2; squaring is ``2 D + D D``.
    """
    X = S / 2**halvings
    square = X @ X
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    p, q = _EVEN[-1] * eye, _ODD[-1] * eye
    for a, b in zip(reversed(_EVEN[:-1]), reversed(_ODD[:-1]), strict=True):
        p, q = p @ square + a * eye, q @ square + b * eye
    q = X @ q
    D = 2 * q @ torch.linalg.inv_ex(p - q).inverse
    for _ in range(halvings):
        D = 2 * D + D @ D
    return D


def polished(D: Tensor) -> Tensor:
    """Take two Newton-Schulz steps, ``R (3 I - R^T R) / 2``, in terms of D = R - I.

    Examples
    --------
    >>> R = torch.eye(2) + polished(torch.tensor([[0.0, 0.01], [-0.01, 0.0]]).double())
    >>> bool((R.mT @ R - torch.eye(2)).abs().max() < 1e-15)
    True
    """
    for _ in range(2):
        E = D + D.mT + D.mT @ D
        D = D - (E + D @ E) / 2
    return D
