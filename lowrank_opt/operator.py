"""The factor triple ``W = left diag(scale) right^T`` as a linear operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowrank_opt.checks import check_positive_rank, check_rank
from lowrank_opt.errors import ShapeError
from lowrank_opt.linalg import (
    differentiable_values,
    leading_svd,
    lp_norm,
    product_svd,
    top_k_sum,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

# Entries are gathered in blocks of this many numbers: memory does not grow with their count.
_GATHER_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class LowRankOperator:
    r"""A matrix :math:`W = \mathrm{left}\,\mathrm{diag}(\mathrm{scale})\,\mathrm{right}^T`.

    The factors need not be orthonormal. Nothing here forms the m x n matrix except `to_dense`.

    Parameters
    ----------
    left : Tensor, shape (..., m, r)
    scale : Tensor, shape (..., r)
        May be of higher precision than the factors.
    right : Tensor, shape (..., n, r)

    Raises
    ------
    ShapeError
        If shapes, the dtypes of `left` and `right`, or devices do not fit.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(3, 1), torch.tensor([2.0]), torch.ones(4, 1))
    >>> op.shape, op.rank
    ((3, 4), 1)
    >>> op @ torch.ones(4)
    tensor([8., 8., 8.])
    """

    left: Tensor
    scale: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        _check_triple(self.left, self.scale, self.right)

    @classmethod
    def from_dense(cls, matrix: Tensor, rank: int | None = None) -> LowRankOperator:
        """Return the truncated SVD of a dense m x n matrix.

        Parameters
        ----------
        matrix : Tensor, shape (m, n)
        rank : int, optional
            Number of singular triples kept, at least 1; all of them by default.

        Raises
        ------
        RankError
            If `rank` is less than 1.

        Examples
        --------
        >>> LowRankOperator.from_dense(torch.eye(3), rank=2).rank
        2
        """
        if rank is not None:
            check_positive_rank(rank)
        U, sigma, V = leading_svd(matrix, min(matrix.shape) if rank is None else rank)
        return cls(U.to(matrix.dtype), sigma.to(matrix.dtype), V.to(matrix.dtype))

    @classmethod
    def from_leaves(cls, leaves: Iterable[object], _context: object) -> LowRankOperator:
        """Rebuild from pytree leaves, which tracing may replace by things that are no tensors."""
        op = object.__new__(cls)
        for name, leaf in zip(("left", "scale", "right"), leaves, strict=True):
            object.__setattr__(op, name, leaf)
        return op

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.left, self.scale, self.right))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.left.shape[-2], self.right.shape[-2]

    @property
    def rank(self) -> int:
        """Number of columns of the factors, an upper bound on the rank of W."""
        return self.scale.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors."""
        return self.left.dtype

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self.left.device

    @property
    def mT(self) -> LowRankOperator:
        """The transpose, ``right diag(scale) left^T``."""
        return LowRankOperator(self.right, self.scale, self.left)

    def __matmul__(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (n,) or (..., n, k)."""
        if x.ndim == 1:
            return (self @ x.unsqueeze(-1)).squeeze(-1)
        return self.left @ (self.scale.unsqueeze(-1) * (self.right.mT @ x)).to(x.dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Return ``x W^T``, the forward of a linear layer, for x of shape (..., n)."""
        scale = self.scale if self.scale.ndim == 1 else self.scale.unsqueeze(-2)
        hidden = (x @ self.right) * scale
        return (hidden if hidden.dtype is x.dtype else hidden.to(x.dtype)) @ self.left.mT

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return ``W[rows, cols]``, shape (..., k), for index vectors of equal length k.

        Works in blocks: memory is proportional to the number of entries, not to entries x rank
        (while autograd records, it keeps what it needs; for many observed entries use
        `lowrank_opt.kernels.observed_entries`).
        """
        if rows.shape != cols.shape or rows.ndim != 1:
            shapes = f"{tuple(rows.shape)} and {tuple(cols.shape)}"
            raise ShapeError(f"rows and cols must be index vectors of equal length; got {shapes}")
        block = max(1, _GATHER_BLOCK // max(1, self.rank))
        scaled = self.left * self.scale.unsqueeze(-2)
        parts = [
            (scaled[..., i, :] * self.right[..., j, :]).sum(-1)
            for i, j in zip(rows.split(block), cols.split(block), strict=True)
        ]
        return torch.cat(parts, dim=-1).to(self.dtype)

    def thin_svd(self) -> LowRankOperator:
        """Return the same matrix with orthonormal factors and decreasing scale >= 0.

        Computed in float64 from two thin QR factorizations and one small SVD, returned in the
        dtype of the factors; ``min(m, n, rank)`` columns. Not differentiable at repeated singular
        values: use `singular_values` in a loss.
        """
        U, sigma, V = product_svd(*self)
        k = sigma.shape[-1]
        return LowRankOperator(U[..., :k], sigma, V[..., :k]).to(dtype=self.dtype)

    def singular_values(self) -> Tensor:
        r"""Return the singular values, decreasing, shape (..., min(m, n, rank)).

        Computed in float64 and rounded to the dtype of the factors. Differentiable once in the
        factors, forward and reverse: :math:`d\sigma_i = u_i^T\, dW\, v_i`, a subgradient where
        values repeat. A second derivative raises `DerivativeError`.
        """
        U, sigma, V = product_svd(*self.detach())
        k, dtype = sigma.shape[-1], sigma.dtype
        svd = U[..., :k], sigma, V[..., :k]
        left, scale, right = (x.to(dtype) for x in self)
        return differentiable_values(svd, (left, scale, right)).to(self.dtype)

    def schatten_norm(self, p: float = 2.0) -> Tensor:
        """Return the Schatten-p norm: nuclear at p = 1, Frobenius at 2, spectral at inf."""
        return lp_norm(self.singular_values(), p)

    def ky_fan_norm(self, k: int) -> Tensor:
        """Return the sum of the `k` largest singular values."""
        return top_k_sum(self.singular_values(), k)

    def truncate(self, k: int) -> LowRankOperator:
        """Return the nearest matrix of rank at most `k` in every unitarily invariant norm."""
        check_rank(k, self.shape, "k")
        U, sigma, V = self.thin_svd()
        return LowRankOperator(U[..., :k], sigma[..., :k], V[..., :k])

    def to_dense(self) -> Tensor:
        """Return the m x n matrix: the one method of the package that allocates it."""
        return (self.left * self.scale.unsqueeze(-2)).to(self.dtype) @ self.right.mT

    def to_scipy(self) -> LinearOperator:
        """Return a `scipy.sparse.linalg.LinearOperator` on float64 copies of the factors."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        left, scale, right = (x.detach().cpu().double().numpy() for x in self)
        return LinearOperator(
            self.shape,
            dtype=np.dtype(np.float64),
            matvec=lambda x: left @ (scale * (right.T @ x.ravel())),
            rmatvec=lambda y: right @ (scale * (left.T @ y.ravel())),
            matmat=lambda x: left @ (scale[:, None] * (right.T @ x)),
            rmatmat=lambda y: right @ (scale[:, None] * (left.T @ y)),
        )

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> LowRankOperator:
        """Return a copy with another dtype or device."""
        return LowRankOperator(*(x.to(device=device, dtype=dtype) for x in self))

    def detach(self) -> LowRankOperator:
        """Return the same triple cut off from autograd (sharing memory)."""
        return LowRankOperator(*(x.detach() for x in self))

    def clone(self) -> LowRankOperator:
        """Return the same triple with its own memory."""
        return LowRankOperator(*(x.clone() for x in self))

    def __add__(self, other: LowRankOperator) -> LowRankOperator:
        """Return the sum: columns side by side, rank at most the sum of ranks."""
        if self.shape != other.shape:
            raise ShapeError(
                f"operators must have equal shapes; got {self.shape} and {other.shape}"
            )
        pairs = zip(self, other, strict=True)
        return LowRankOperator(*(torch.cat((a, b), dim=-1) for a, b in pairs))

    def __mul__(self, factor: float) -> LowRankOperator:
        """Return ``factor * W``."""
        return LowRankOperator(self.left, self.scale * factor, self.right)

    __rmul__ = __mul__

    def __neg__(self) -> LowRankOperator:
        return LowRankOperator(self.left, -self.scale, self.right)

    def __sub__(self, other: LowRankOperator) -> LowRankOperator:
        return self + (-other)

    def __repr__(self) -> str:
        m, n = self.shape
        return f"LowRankOperator({m} x {n}, rank <= {self.rank}, {self.dtype}, {self.device})"


# Functions of torch.func then take and return operators: one with a batch of triples under vmap.
pytree.register_pytree_node(
    LowRankOperator,
    lambda op: (list(op), None),
    LowRankOperator.from_leaves,
    serialized_type_name="lowrank_opt.LowRankOperator",
)


def _shapes(left: Tensor, scale: Tensor, right: Tensor) -> str:
    return f"left {tuple(left.shape)}, scale {tuple(scale.shape)}, right {tuple(right.shape)}"


def _check_triple(left: Tensor, scale: Tensor, right: Tensor) -> None:
    if left.ndim < 2 or right.ndim != left.ndim or scale.ndim != left.ndim - 1:
        raise ShapeError(
            "a factor triple is left (..., m, r), scale (..., r), right (..., n, r); got "
            f"{_shapes(left, scale, right)}"
        )
    if not left.shape[-1] == scale.shape[-1] == right.shape[-1]:
        raise ShapeError(
            "left, scale and right must have the same number of columns; got "
            f"{_shapes(left, scale, right)}"
        )
    if left.dtype != right.dtype or not left.is_floating_point():
        raise ShapeError(
            f"left and right must share one floating dtype; got {left.dtype} and {right.dtype}"
        )
    if not left.device == scale.device == right.device:
        devices = f"{left.device}, {scale.device}, {right.device}"
        raise ShapeError(f"left, scale and right must be on one device; got {devices}")
