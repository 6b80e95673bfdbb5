"""A fixed low-rank matrix as a parameterization without parameters."""

from __future__ import annotations

from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization


class Frozen(Parameterization):
    """The matrix of an operator, stored in buffers: nothing to train.

    Set: the matrices of its rank. Made by `combine`; it is saved and loaded like any other.

    Parameters
    ----------
    op : LowRankOperator
        Of at most min(m, n) columns.

    Examples
    --------
    >>> import torch
    >>> Frozen(LowRankOperator.from_dense(torch.eye(3), rank=2)).rank
    2
    """

    def __init__(self, op: LowRankOperator) -> None:
        super().__init__(op.shape, op.rank)
        left, scale, right = op.detach().clone()
        self.register_buffer("left", left)
        self.register_buffer("right", (right * scale).to(right.dtype))
        self.left: Tensor
        self.right: Tensor

    @property
    def op(self) -> LowRankOperator:
        """The matrix."""
        return self.factors()

    def factors(self) -> LowRankOperator:
        return LowRankOperator(self.left, self.left.new_ones(self.rank), self.right)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the balanced factors of the target."""
        U, sigma, V = self.svd_of(target)
        return {"left": U * sigma.sqrt(), "right": V * sigma.sqrt()}
