r"""Thin orthonormal bases of factors: what replaces inverses of Gram matrices.

A factor is ``F = U K`` with U orthonormal, so that its projector is ``U U^T``, its pseudo-inverse
``K^+ U^T``, and :math:`(F^T F)^{-1} = K^{-1} K^{-T}` is never formed, which would lose twice the
digits. Three ways to U and K, the cheapest that is good enough for the condition of F:

* Cholesky of the Gram matrix, U left as the product ``F K^-1`` (float32, condition at most 10);
* the same twice, CholeskyQR2 (condition at most 1000);
* Householder's QR and an SVD of its triangle (everything else, float64, dependent columns).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.linalg import negligible
from lowrank_opt.training.algebra.small import (
    LinAlgErrors,
    Small,
    cholesky,
    frobenius,
    identity,
    paired,
    small,
    stacked,
    tensor,
    triangular_inverse,
)
from lowrank_opt.training.algebra.tall import Both, TallPair

# A Gram matrix gives frames that are orthonormal to cond^2 times the rounding of its arithmetic:
# enough for float32 up to the first condition number; up to the second one, a repetition on the
# result makes it as good as Householder's QR.
ONE_PASS_CONDITION = 10.0
_TWO_PASS_CONDITION = 1e3
# Inverses that are larger belong to Gram matrices near underflow.
_LARGEST = negligible(torch.float32) ** -0.5
# Rows whose products are summed in float32: with more, the sum's rounding grows with their number.
_BLOCK = 8192


class ThinBases(NamedTuple):
    r"""``F = frame K`` of two factors, with orthonormal `frames` and pseudo-inverses of K.

    Directions of F that are zero to rounding (relative size ``4 sqrt(r) eps``) have zero columns
    in the frame and in the inverse, so that nothing depends on an arbitrary completion.

    Parameters
    ----------
    frames : TallPair, shapes (m, r), (n, r)
        Orthonormal columns, or zero ones.
    roots : Small, shape (2, r, r)
        K.
    inverses : Small, shape (2, r, r)
        :math:`K^+`.
    grams : Small, shape (2, r, r)
        ``F^T F``.
    inverse_norms : tuple of float
        Frobenius norms of the inverses where K is so well conditioned that ``F @ inverse``, not
        multiplied out, is the frame; otherwise infinite.
    """

    frames: TallPair
    roots: Small
    inverses: Small
    grams: Small
    inverse_norms: tuple[float, float]

    def unmagnified(self, gradients: Both) -> TallPair:
        """Return ``gradients @ inverses``: with respect to the frames instead of the factors.

        Multiplied out unless K is well conditioned: coordinates must not lose what the span of
        lower precision can still tell.
        """
        product = TallPair(gradients, self.inverses)
        tame = all(map(math.isfinite, self.inverse_norms))
        return product if tame else TallPair(product.dense())


def thin_bases(factors: Both) -> ThinBases:
    """Return the thin bases of two factors of one rank, in their dtype (float32 for half).

    Factors in float64 take a thin QR and the SVD of its r x r part. In lower precision, well
    conditioned ones take the Cholesky factor of their Gram matrix, and their frame is not even
    multiplied out; moderately conditioned ones take it twice (CholeskyQR2); others, QR in float64.

    Parameters
    ----------
    factors : tuple of Tensor, shapes (m, r), (n, r)

    References
    ----------
    Yamamoto et al., Roundoff error analysis of the CholeskyQR2 algorithm (ETNA 44, 2015).

    Examples
    --------
    >>> flat = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    >>> abs(thin_bases((flat, torch.eye(2))).roots[0])
    array([[5., 0.],
           [0., 0.]])
    """
    if factors[0].dtype == torch.float64:
        return _gathered([_by_qr(x) for x in factors])
    singles = factors[0].float(), factors[1].float()
    grams = stacked(*map(_gram, singles))
    roots, inverses, conditions, sizes = _cholesky(grams)
    if all(x <= ONE_PASS_CONDITION for x in conditions):
        return ThinBases(TallPair(singles, inverses), roots, inverses, grams, (sizes[0], sizes[1]))
    sides = zip(singles, roots, inverses, grams, conditions, sizes, strict=True)
    return _gathered([_side(*known) for known in sides])


class _Side(NamedTuple):
    span: Tensor
    coordinates: Small
    root: Small
    inverse: Small
    gram: Small
    inverse_norm: float = math.inf


def _gathered(sides: list[_Side]) -> ThinBases:
    left, right = sides
    parts = zip(left[1:5], right[1:5], strict=True)
    coordinates, roots, inverses, grams = (paired(x, y) for x, y in parts)
    frames = TallPair((left.span, right.span), coordinates)
    norms = left.inverse_norm, right.inverse_norm
    return ThinBases(frames, roots, inverses, grams, norms)


def _side(
    factor: Tensor, root: Small, inverse: Small, gram: Small, condition: float, size: float
) -> _Side:
    if condition <= ONE_PASS_CONDITION:
        return _Side(factor, inverse, root, inverse, gram, size)
    twice = _by_two_passes(factor, root, gram) if condition <= _TWO_PASS_CONDITION else None
    return twice or _by_qr(factor)


def _gram(factor: Tensor) -> Tensor:
    """Return F^T F of float32: blocks of rows in float32, their sum in float64."""
    if len(factor) <= _BLOCK:
        return torch.mm(factor.t(), factor)
    return torch.stack([(x.mT @ x).double() for x in factor.split(_BLOCK)]).sum(0)


_Cholesky: TypeAlias = tuple[Small, Small, list[float], list[float]]


def _cholesky(grams: Small) -> _Cholesky:
    """Return K with ``gram = K^T K``, its inverse, their condition numbers over r, inverse norms.

    A condition number is not finite where there is no factorisation or entries almost underflow.
    """
    try:
        roots, inverses = cholesky(grams)
    except LinAlgErrors:
        if len(grams) > 1:
            return _joined(_cholesky(grams[:1]), _cholesky(grams[1:]))
        return grams, grams, [math.inf], [math.inf]
    conditions, sizes = [], [frobenius(x) for x in inverses]
    for root, size in zip(roots, sizes, strict=True):
        conditions.append(frobenius(root) * size / len(root) if size < _LARGEST else math.inf)
    return roots, inverses, conditions, sizes


def _joined(first: _Cholesky, second: _Cholesky) -> _Cholesky:
    """Return the results for two matrices, which could not be had together."""
    small = zip(first[:2], second[:2], strict=True)
    roots, inverses = (paired(x[0], y[0]) for x, y in small)
    return roots, inverses, first[2] + second[2], first[3] + second[3]


def _by_two_passes(factor: Tensor, root: Small, gram: Small) -> _Side | None:
    """Return CholeskyQR2: the frame of the first pass, in the coordinates of a second one."""
    first = tensor(root, torch.float32)
    span = torch.linalg.solve_triangular(first, factor, upper=True, left=False)
    roots, inverses, (condition,), _ = _cholesky(small(_gram(span))[None])
    if not condition <= ONE_PASS_CONDITION:
        return None
    root = roots[0] @ small(first)
    return _Side(span, inverses[0], root, triangular_inverse(root), gram)


def _by_qr(factor: Tensor) -> _Side:
    dtype = torch.promote_types(factor.dtype, torch.float32)
    m, r = factor.shape
    # Fewer rows than columns: zero ones keep all small matrices r x r.
    Q, T = torch.linalg.qr(torch.nn.functional.pad(factor.double(), (0, 0, 0, max(0, r - m))))
    A, s, Bh = torch.linalg.svd(T, full_matrices=False)
    cut = s[:1] * 4 * math.sqrt(s.shape[0]) * torch.finfo(factor.dtype).eps
    kept = s > cut.clamp_min(negligible(factor.dtype))
    inverse = Bh.mT * torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    root = torch.where(kept, s, 0.0).unsqueeze(1) * Bh
    span = ((Q[:m] @ A) * kept).to(dtype)
    root = small(root)
    return _Side(span, identity(r, root), root, small(inverse), small(T.mT @ T))
