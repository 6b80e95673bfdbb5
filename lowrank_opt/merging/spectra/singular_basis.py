"""The singular vectors of a base weight, computed once, and those of the weight plus an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.linalg import leading_svd, orthonormal_columns, working_dtype
from lowrank_opt.operator import LowRankOperator

SingularSide: TypeAlias = Literal["left", "right"]

# Up to this many rows or columns a dense SVD takes less time than the products of Lanczos.
_SMALL = 1024
_EXTRA = 4
_BLOCKS = 4
# Relative size of the residuals W^T u - sigma v at which Lanczos stops.
_ACCURACY = 1e-9


@dataclass(frozen=True, eq=False)
class SingularBasis:
    r"""The thin SVD :math:`W_0 = X \Sigma Y^T` of a base weight, for any number of comparisons.

    Vectors of singular values that are zero to rounding are arbitrary, and left out. Holds as many
    numbers as the factors have: about two dense matrices, in float64.

    Parameters
    ----------
    triples : LowRankOperator
        With orthonormal factors and a positive, decreasing scale; `SingularBasis.of` makes it.

    Examples
    --------
    >>> basis = SingularBasis.of(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
    >>> basis.values
    tensor([3., 1.], dtype=torch.float64)
    """

    triples: LowRankOperator

    @classmethod
    def of(cls, weight: Tensor) -> SingularBasis:
        """Return the basis of a dense m x n weight.

        Raises
        ------
        ShapeError
            If it is no matrix.
        TargetError
            If it is not finite.
        """
        if weight.ndim != 2 or 0 in weight.shape:
            raise ShapeError(
                f"a base weight must be an m x n matrix; got shape {tuple(weight.shape)}: flatten "
                "or split it first"
            )
        if not bool(torch.isfinite(weight).all()):
            raise TargetError("a base weight must be finite; got NaN or infinity")
        U, sigma, V = leading_svd(weight.detach(), min(weight.shape))
        rank = _numerical_rank(sigma, weight.shape)
        return cls(LowRankOperator(U[:, :rank], sigma[:rank], V[:, :rank]))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.triples.shape

    @property
    def values(self) -> Tensor:
        """The singular values, decreasing, shape (q,)."""
        return self.triples.scale

    def vectors(self, side: SingularSide) -> Tensor:
        """Return the left (m x q) or right (n x q) singular vectors."""
        return self.triples.left if side == "left" else self.triples.right

    def updated_svd(self, update: LowRankOperator | Tensor, count: int) -> LowRankOperator:
        r"""Return the leading singular triples of :math:`W_0 + \Delta W`.

        By a dense SVD up to 1024 rows or columns, where the sum is formed; above, by block Lanczos
        with products of the factors, to residuals of 1e-9 of the largest singular value, and
        again by a dense SVD where the spectrum is so flat that this would need half of all
        directions.

        Parameters
        ----------
        update : LowRankOperator or Tensor, shape (m, n)
        count : int
            Cut to the rank of the sum.

        Returns
        -------
        LowRankOperator
            At most `count` columns, of positive decreasing scale, in float64.

        Raises
        ------
        ShapeError, TargetError
            If the update has another shape, or is not finite.
        """
        update = _checked(update, self.shape, self.triples)
        found = None
        if min(self.shape) > _SMALL:
            found = _lanczos(_Sum(self.triples, update), self._start(update, count), count)
        if found is None:
            dense = update if isinstance(update, Tensor) else update.to_dense()
            found = LowRankOperator(*leading_svd(self.triples.to_dense() + dense, count))
        rank = _numerical_rank(found.scale, self.shape)
        return LowRankOperator(found.left[:, :rank], found.scale[:rank], found.right[:, :rank])

    def _start(self, update: LowRankOperator | Tensor, count: int) -> Tensor:
        """Return a basis close to the answer: the leading vectors, and the update's own."""
        V = self.triples.right
        # What an update removes makes room for vectors that none of these may see: a few random
        # columns have a part of everything.
        noise = torch.randn(len(V), _EXTRA, generator=torch.Generator().manual_seed(0)).to(V)
        own = [] if isinstance(update, Tensor) else [update.right]
        columns = torch.cat((V[:, :count], *own, noise), dim=1)[:, : len(V)]
        return orthonormal_columns(columns, columns.shape[1])


@dataclass(frozen=True)
class _Sum:
    """The sum of two linear maps by their products."""

    first: LowRankOperator
    second: LowRankOperator | Tensor

    @property
    def mT(self) -> _Sum:
        return _Sum(self.first.mT, self.second.mT)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.first @ x + self.second @ x


def _lanczos(W: _Sum, start: Tensor, count: int) -> LowRankOperator | None:
    """Return leading triples from a block Krylov space of ``W^T W``; None if it gets too large."""
    P, block = start, start
    limit = min(W.first.shape) // 2
    while P.shape[1] + _BLOCKS * block.shape[1] <= limit:
        for _ in range(_BLOCKS):
            block = _orthogonal_to(P, W.mT @ (W @ block))
            P = torch.cat((P, block), dim=1)
        U, sigma, Hh = torch.linalg.svd(W @ P, full_matrices=False)
        U, sigma, V = U[:, :count], sigma[:count], P @ Hh[:count].mT
        residuals = torch.linalg.vector_norm(W.mT @ U - V * sigma, dim=0)
        if bool((residuals <= _ACCURACY * sigma[0]).all()):
            # A Krylov space that is exhausted continues with rounding, perhaps in P again.
            orthonormal = torch.dist(P.mT @ P, torch.eye(P.shape[1]).to(P)) <= _ACCURACY
            return LowRankOperator(U, sigma, V) if orthonormal else None
    return None


def _orthogonal_to(P: Tensor, x: Tensor) -> Tensor:
    # Twice is enough: once leaves the rounding of what was subtracted.
    for _ in range(2):
        x = torch.linalg.qr(x - P @ (P.mT @ x)).Q
    return x


def _numerical_rank(sigma: Tensor, shape: tuple[int, ...]) -> int:
    return int((sigma > max(shape) * torch.finfo(sigma.dtype).eps * sigma[:1]).sum())


def _checked(
    update: LowRankOperator | Tensor, shape: tuple[int, int], like: LowRankOperator
) -> LowRankOperator | Tensor:
    if isinstance(update, Tensor):
        came, parts = tuple(update.shape), (update,)
        update = update.detach().to(like.left)
    else:
        came, parts = update.shape, tuple(update)
        update = update.detach().to(dtype=working_dtype(like.left), device=like.device)
    if came != shape:
        raise ShapeError(f"an update must have the shape of its base, {shape}; got {came}")
    if not all(bool(torch.isfinite(x).all()) for x in parts):
        raise TargetError("an update must be finite; got NaN or infinity")
    return update
