"""Thin orthonormal bases of factors: what replaces inverses of Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.linalg import negligible
from lowrank_opt.training.tall import Tall

# A Gram matrix gives frames that are orthonormal to cond^2 times the rounding of its arithmetic:
# float32 is enough for float32 frames up to the first condition number, float64 up to the second.
_SINGLE_CONDITION = 10.0
_DOUBLE_CONDITION = 1e4


@dataclass(frozen=True, eq=False)
class ThinBasis:
    r"""``F = frame K`` with orthonormal `frame` and the pseudo-inverse of K beside it.

    Directions of `F` that are zero to rounding (relative size ``4 sqrt(r) eps``) have zero columns
    in `frame` and in `inverse`, so that nothing depends on an arbitrary completion.

    Parameters
    ----------
    frame : Tall, shape (m, r)
        Orthonormal columns, or zero ones; the product of F and `inverse` itself where F is well
        conditioned.
    root : Tensor, shape (r, r)
        K, in float64.
    inverse : Tensor, shape (r, r)
        :math:`K^+`, in float64; ``frame = F @ inverse``.
    gram : Tensor, shape (r, r)
        ``F^T F``, in float64.
    """

    frame: Tall
    root: Tensor
    inverse: Tensor
    gram: Tensor

    def unmagnified(self, gradient: Tensor) -> Tall:
        """Return ``gradient @ inverse``: the gradient with respect to the other factor's frame.

        Multiplied out unless K is well conditioned: coordinates must not lose what the span of
        lower precision can still tell.
        """
        if self.frame.coordinates is None:
            return Tall(gradient @ self.inverse.to(gradient.dtype))
        return Tall(gradient, self.inverse)


def thin_basis(factor: Tensor) -> ThinBasis:
    """Return the thin basis of a factor, in its dtype (float32 for half precision).

    Thin QR and the SVD of its r x r part in float64. A factor of lower precision that is not
    badly conditioned takes the Cholesky factor of its Gram matrix instead, which is then as
    accurate; if it is well conditioned, its frame is not even multiplied out.

    Parameters
    ----------
    factor : Tensor, shape (m, r)

    Examples
    --------
    >>> basis = thin_basis(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    >>> basis.root.abs()
    tensor([[5., 0.], [0., 0.]], dtype=torch.float64)
    """
    return thin_bases([factor])[0]


def thin_bases(factors: Sequence[Tensor]) -> list[ThinBasis]:
    """Return the thin bases of factors of one rank, their r x r parts in one batch."""
    if factors[0].dtype == torch.float64:
        return [_from_qr(x) for x in factors]
    singles = [x.float() for x in factors]
    grams = torch.stack([_blocked_gram(x) for x in singles])
    roots, inverses, tame = _cholesky(grams, _SINGLE_CONDITION)
    return [
        ThinBasis(Tall(x, inverse), root, inverse, gram) if fine else _from_double(x)
        for x, root, inverse, gram, fine in zip(
            singles, roots, inverses, grams, tame.tolist(), strict=True
        )
    ]


def _from_double(factor: Tensor) -> ThinBasis:
    double = factor.double()
    gram = double.mT @ double
    root, inverse, tame = _cholesky(gram, _DOUBLE_CONDITION)
    if bool(tame):
        return ThinBasis(Tall((double @ inverse).float()), root, inverse, gram)
    return _from_qr(factor)


def _blocked_gram(factor: Tensor) -> Tensor:
    """Return F^T F of float32: blocks of 64 rows in float32, their sum in float64."""
    m, r = factor.shape
    k = m // 64
    blocks = factor[: 64 * k].view(k, 64, r)
    rest = factor[64 * k :]
    gram = torch.bmm(blocks.mT, blocks).sum(0, dtype=torch.float64)
    return gram + (rest.mT @ rest).double() if len(rest) else gram


def _cholesky(gram: Tensor, condition: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return K, its inverse, ``gram = K^T K``, and whether K is at most that badly conditioned."""
    r = gram.shape[-1]
    K, failed = torch.linalg.cholesky_ex(gram, upper=True)
    eye = torch.eye(r, dtype=K.dtype, device=K.device)
    inverse = torch.linalg.solve_triangular(K, eye, upper=True)
    bound = torch.linalg.matrix_norm(K) * torch.linalg.matrix_norm(inverse)
    large = gram.diagonal(dim1=-2, dim2=-1).amin(-1) > negligible(torch.float32)
    return K, inverse, (bound <= condition * r) & large & (failed == 0)


def _from_qr(factor: Tensor) -> ThinBasis:
    dtype = torch.promote_types(factor.dtype, torch.float32)
    Q, T = torch.linalg.qr(factor.double())
    A, s, Bh = torch.linalg.svd(T, full_matrices=False)
    cut = s[:1] * 4 * math.sqrt(s.shape[0]) * torch.finfo(factor.dtype).eps
    kept = s > cut.clamp_min(negligible(factor.dtype))
    inverse = Bh.mT * torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    root = torch.where(kept, s, 0.0).unsqueeze(1) * Bh
    return ThinBasis(Tall(((Q @ A) * kept).to(dtype)), root, inverse, T.mT @ T)
