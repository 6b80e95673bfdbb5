"""A weight times a rotation, minus the weight: an operator that rotates activations instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True, eq=False)
class Rotation:
    r""":math:`R = R_1 R_2 \cdots R_k`, each a block-diagonal rotation of permuted coordinates.

    Parameters
    ----------
    steps : tuple of Tensor, shapes (blocks, b, b)
        Each ``R_j - I``, block by block.
    orders : tuple of Tensor or None, shapes (n,)
        Which coordinates stand in the blocks, in order; None for the given order.
    """

    steps: tuple[Tensor, ...]
    orders: tuple[Tensor | None, ...]

    def moved(self, x: Tensor) -> Tensor:
        """Return ``x R^T - x`` for x of shape (..., n); exactly zero where all steps are."""
        total, y = torch.zeros_like(x), x
        for D, order in zip(reversed(self.steps), reversed(self.orders), strict=True):
            z = y if order is None else y.index_select(-1, order)
            step = _in_blocks(z, D.to(x.dtype).mT)
            if order is not None:
                step = step.index_select(-1, torch.argsort(order))
            y, total = y + step, total + step
        return total

    def detached(self) -> Rotation:
        """Return the same rotation cut off from autograd."""
        return Rotation(tuple(D.detach() for D in self.steps), self.orders)


def _in_blocks(x: Tensor, D: Tensor) -> Tensor:
    """Return x with each block of its last axis multiplied by its matrix."""
    blocks, b, _ = D.shape
    if blocks == 1:
        return x @ D[0]
    # Few large products instead of many small ones: blocks first.
    z = x.reshape(-1, blocks, b).transpose(0, 1)
    return torch.bmm(z, D).transpose(0, 1).reshape(x.shape)


class RotatedWeight(LowRankOperator):
    r""":math:`W_0 (R - I)`, with products that rotate activations: no matrix is formed.

    ``linear(x)`` is :math:`(x R^T - x) W_0^T`: n b numbers of work a row for blocks of size b, and
    one product with the weight. Anything else, a sum with another operator or a certificate, reads
    `right`, :math:`(R - I)^T`, which is formed then.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        W_0; shared.
    rotation : Rotation
    """

    def __init__(self, weight: Tensor, rotation: Rotation) -> None:
        for name, value in (("left", weight), ("rotation", rotation)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "scale", weight.new_ones(weight.shape[1]))

    rotation: Rotation

    @property
    def right(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``(R - I)^T``, n x n."""
        eye = torch.eye(self.left.shape[1], dtype=torch.float64, device=self.left.device)
        return self.rotation.moved(eye).to(self.left.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.left.shape[0], self.left.shape[1]

    def linear(self, x: Tensor) -> Tensor:
        """Return ``x W^T``."""
        return self.rotation.moved(x) @ self.left.mT

    def __matmul__(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (n,) or (..., n, k)."""
        return self.linear(x) if x.ndim == 1 else self.linear(x.mT).mT

    def detach(self) -> RotatedWeight:
        """Return the same operator cut off from autograd."""
        return RotatedWeight(self.left.detach(), self.rotation.detached())
