"""What maps in the form of an SVD share, whose components can be dropped."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_positive
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, random_frame


class SumOfComponents(Parameterization):
    r""":math:`W = \text{scaling} \sum_i c_i\, l_i r_i^T`: all matrices of rank at most r, complete.

    Which components live is for `lowrank_opt.training.RankAllocator` to say: it scores them over
    all layers and sets their c_i to zero.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    scaling : float
        Positive; stays what it is when components are dropped.
    dtype, device, generator
        Of the parameters, and of their random start.
    """

    complete: bool = True

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        scaling: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.scaling: float = check_positive(scaling, "scaling")
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left: nn.Parameter = nn.Parameter(empty.new_empty(m, self.rank))
        self.values: nn.Parameter = nn.Parameter(empty.new_empty(self.rank))
        self.right: nn.Parameter = nn.Parameter(empty.new_empty(n, self.rank))
        self.zero_(generator=generator)

    @property
    def active(self) -> int:
        """Number of components that are not zero: the rank bound of the present W."""
        return int(self.values.detach().count_nonzero())

    def factors(self) -> LowRankOperator:
        return LowRankOperator(self.left, self.scaling * self.values, self.right)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the singular value decomposition, for which pruning is optimal."""
        U, sigma, V = self.svd_of(target)
        return {"left": U, "values": sigma / self.scaling, "right": V}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the values to 0 and the vectors to random orthonormal frames.

        The first gradient is that of the values.
        """
        self.values.zero_()
        for p in (self.left, self.right):
            p.copy_(random_frame(*p.shape, like=p, generator=generator))
        return self
