"""Thin orthonormal bases of factors: what replaces inverses of Gram matrices."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_opt.linalg import negligible
from lowrank_opt.training.tall import Both, TallPair

# A Gram matrix gives frames that are orthonormal to cond^2 times the rounding of its arithmetic:
# enough for float32 up to the first condition number; up to the second one, a repetition on the
# result makes it as good as Householder's QR.
_ONE_PASS_CONDITION = 10.0
_TWO_PASS_CONDITION = 1e3


class ThinBases(NamedTuple):
    r"""``F = frame K`` of two factors, with orthonormal `frames` and pseudo-inverses of K.

    Directions of F that are zero to rounding (relative size ``4 sqrt(r) eps``) have zero columns
    in the frame and in the inverse, so that nothing depends on an arbitrary completion.

    Parameters
    ----------
    frames : TallPair, shapes (m, r), (n, r)
        Orthonormal columns, or zero ones.
    roots : Tensor, shape (2, r, r)
        K, in float64.
    inverses : Tensor, shape (2, r, r)
        :math:`K^+`, in float64.
    grams : Tensor, shape (2, r, r)
        ``F^T F``, in float64.
    inverse_norms : tuple of float
        Frobenius norms of the inverses where K is so well conditioned that ``F @ inverse``, not
        multiplied out, is the frame; otherwise infinite.
    """

    frames: TallPair
    roots: Tensor
    inverses: Tensor
    grams: Tensor
    inverse_norms: tuple[float, float]

    def swapped(self) -> ThinBases:
        """Return the bases in the other order."""
        small = (x.flip(0) for x in (self.roots, self.inverses, self.grams))
        return ThinBases(self.frames.swapped(), *small, self.inverse_norms[::-1])

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
    >>> thin_bases((flat, torch.eye(2))).roots[0].abs()
    tensor([[5., 0.], [0., 0.]], dtype=torch.float64)
    """
    if factors[0].dtype == torch.float64:
        return _gathered([_by_qr(x) for x in factors])
    singles = factors[0].float(), factors[1].float()
    grams = torch.stack([_blocked_gram(x) for x in singles])
    roots, inverses, conditions, sizes = _cholesky(grams)
    if max(conditions) <= _ONE_PASS_CONDITION:
        return ThinBases(TallPair(singles, inverses), roots, inverses, grams, (sizes[0], sizes[1]))
    sides = zip(singles, roots, inverses, grams, conditions, sizes, strict=True)
    return _gathered([_side(*known) for known in sides])


class _Side(NamedTuple):
    span: Tensor
    coordinates: Tensor
    root: Tensor
    inverse: Tensor
    gram: Tensor
    inverse_norm: float = math.inf


def _gathered(sides: list[_Side]) -> ThinBases:
    left, right = sides
    parts = zip(left[1:5], right[1:5], strict=True)
    coordinates, roots, inverses, grams = (torch.stack(pair) for pair in parts)
    frames = TallPair((left.span, right.span), coordinates)
    norms = left.inverse_norm, right.inverse_norm
    return ThinBases(frames, roots, inverses, grams, norms)


def _side(
    factor: Tensor, root: Tensor, inverse: Tensor, gram: Tensor, condition: float, size: float
) -> _Side:
    if condition <= _ONE_PASS_CONDITION:
        return _Side(factor, inverse, root, inverse, gram, size)
    twice = _by_two_passes(factor, root, gram) if condition <= _TWO_PASS_CONDITION else None
    return twice or _by_qr(factor)


def _blocked_gram(factor: Tensor) -> Tensor:
    """Return F^T F of float32: blocks of 256 rows in float32, their sum in float64."""
    m, r = factor.shape
    k = m // 256
    if m % 256:
        rest = factor[256 * k :]
        tail = (rest.mT @ rest).double()
        return tail if k == 0 else tail + _blocked_gram(factor[: 256 * k])
    blocks = factor.reshape(k, 256, r)
    return torch.bmm(blocks.mT, blocks).sum(0, dtype=torch.float64)


def _cholesky(grams: Tensor) -> tuple[Tensor, Tensor, list[float], list[float]]:
    """Return K with ``gram = K^T K``, its inverse, their condition numbers over r, inverse norms.

    A condition number is infinite where the factorisation failed or entries are near underflow.
    """
    r = grams.shape[-1]
    K, failed = torch.linalg.cholesky_ex(grams, upper=True)
    inverses = torch.linalg.solve_triangular(K, _eye(r, K.device), upper=True)
    sizes = torch.linalg.vector_norm(torch.cat((K, inverses)), dim=(-2, -1)).tolist()
    roots, sizes = sizes[: len(grams)], sizes[len(grams) :]
    largest = negligible(torch.float32) ** -0.5
    conditions = [
        root * size / r if not bad and size < largest else math.inf
        for root, size, bad in zip(roots, sizes, failed.tolist(), strict=True)
    ]
    return K, inverses, conditions, sizes


@cache
def _eye(rank: int, device: torch.device) -> Tensor:
    return torch.eye(rank, dtype=torch.float64, device=device)


def _by_two_passes(factor: Tensor, root: Tensor, gram: Tensor) -> _Side | None:
    """Return CholeskyQR2: the frame of the first pass, in the coordinates of a second one."""
    first = root.float()
    span = torch.linalg.solve_triangular(first, factor, upper=True, left=False)
    roots, inverses, (condition,), _ = _cholesky(_blocked_gram(span).unsqueeze(0))
    if not condition <= _ONE_PASS_CONDITION:
        return None
    root = roots[0] @ first.double()
    inverse = torch.linalg.solve_triangular(root, _eye(len(root), root.device), upper=True)
    return _Side(span, inverses[0], root, inverse, gram)


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
    return _Side(span, _eye(r, span.device), root, inverse, T.mT @ T)
