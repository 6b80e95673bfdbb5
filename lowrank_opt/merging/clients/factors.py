"""Clients' factors in one frame: means, the exact average, and what averaging leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import RankError, ShapeError
from lowrank_opt.merging.clients.clients import working
from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True, eq=False)
class ClientFactors:
    r"""Factors of equal rank with one scale: :math:`W_k = L_k\, \mathrm{diag}(s)\, R_k^T`.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Positive, of sum one.
    left : Tensor, shape (K, m, r)
    scale : Tensor, shape (r,)
    right : Tensor, shape (K, n, r)
    """

    weights: Tensor
    left: Tensor
    scale: Tensor
    right: Tensor

    @classmethod
    def of(cls, ops: Sequence[LowRankOperator], weights: Tensor) -> ClientFactors:
        """Stack the factors in float64; scales that differ go into the left factors.

        Raises
        ------
        RankError
            If the clients have different numbers of columns.
        """
        ranks = sorted({op.rank for op in ops})
        if len(ranks) > 1:
            raise RankError(
                f"averaging factors needs clients of one rank; got {ranks}: use 'flora' or "
                "'flexlora', which take any ranks"
            )
        wide = [working(op) for op in ops]
        scale = wide[0].scale
        left = torch.stack([op.left for op in wide])
        right = torch.stack([op.right for op in wide])
        if not all(torch.equal(op.scale, scale) for op in wide):
            left = left * torch.stack([op.scale for op in wide]).unsqueeze(1)
            scale = torch.ones_like(scale)
        return cls(weights.to(left), left, scale, right)

    @property
    def common_right(self) -> bool:
        """Whether all clients hold the very same right factor."""
        return bool((self.right == self.right[0]).all())

    def mean(self) -> LowRankOperator:
        """Return the product of the mean factors."""
        return LowRankOperator(self.mean_left(), self.scale, self.mean_right())

    def mean_left(self) -> Tensor:
        """Return ``sum_k p_k L_k``."""
        return torch.einsum("k,kmr->mr", self.weights, self.left)

    def mean_right(self) -> Tensor:
        """Return ``sum_k p_k R_k``, exactly the common factor if there is one."""
        if self.common_right:
            return self.right[0]
        return torch.einsum("k,knr->nr", self.weights, self.right)

    def residual(self) -> LowRankOperator | None:
        r"""Return what the mean factors miss of the exact average; None for one client.

        :math:`D - \bar L S \bar R^T = \sum_{k<K} p_k (L_k - \bar L) S (R_k - R_K)^T` since the
        weighted deviations from a mean sum to zero: r (K - 1) columns, and no cancellation
        between large terms.
        """
        K, _, r = self.left.shape
        if K == 1:
            return None
        left = self.left[:-1] - self.mean_left()
        right = self.right[:-1] - self.right[-1]
        scale = self.weights[:-1].unsqueeze(1) * self.scale
        return LowRankOperator(
            left.transpose(0, 1).reshape(-1, (K - 1) * r),
            scale.flatten(),
            right.transpose(0, 1).reshape(-1, (K - 1) * r),
        )


def aligned(op: LowRankOperator, reference: LowRankOperator) -> LowRankOperator:
    r"""Return the same matrix with factors turned towards those of a reference.

    :math:`L S R^T` does not change when a signed square root of the scale goes into both factors
    and both are multiplied by an orthogonal Q. The Q that brings them nearest to the reference's,
    in the sum of the squared distances of both factors, is the polar factor of
    :math:`L^T L_0 + R^T R_0`.

    Parameters
    ----------
    op, reference : LowRankOperator
        Of one shape and rank. A common positive scale stays where it is; any other is divided
        between the factors.

    Returns
    -------
    LowRankOperator
        In float64.

    References
    ----------
    Schönemann, A generalized solution of the orthogonal Procrustes problem (1966).

    Examples
    --------
    >>> op = LowRankOperator(torch.eye(3)[:, :2], torch.ones(2), torch.eye(4)[:, :2])
    >>> turned = LowRankOperator(op.left.flip(1), op.scale, op.right.flip(1))
    >>> torch.equal(aligned(turned, op).left, op.left.double())
    True
    """
    if op.shape != reference.shape or op.rank != reference.rank:
        raise ShapeError(
            f"a reference must have the shape and rank of the clients, {op.shape} and {op.rank}; "
            f"got {reference.shape} and {reference.rank}"
        )
    (L, R), (L0, R0) = _halves(op), _halves(reference)
    # Q depends on the direction of the cross product only, which must not overflow.
    L0, R0 = (x / max(float(L0.abs().max()), float(R0.abs().max()), _TINY) for x in (L0, R0))
    peak = max(float(L.abs().max()), float(R.abs().max()), _TINY)
    U, _, Vh = torch.linalg.svd((L / peak).mT @ L0 + (R / peak).mT @ R0)
    Q = U @ Vh
    common = working(op).scale
    if _is_one_positive(common):
        wide = working(op)
        return LowRankOperator(wide.left @ Q, common, wide.right @ Q)
    return LowRankOperator(L @ Q, torch.ones_like(common), R @ Q)


_TINY = torch.finfo(torch.float64).tiny


def _is_one_positive(scale: Tensor) -> bool:
    return bool((scale == scale[0]).all()) and bool(scale[0] > 0)


def _halves(op: LowRankOperator) -> tuple[Tensor, Tensor]:
    """Divide the scale between the factors, its signs on the left."""
    left, scale, right = working(op)
    root = scale.abs().sqrt()
    return left * root * scale.sign(), right * root
