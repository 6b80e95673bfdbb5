"""A small matrix as its own parameter: the core of LoRA-XS."""

from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization


class DenseCore(Parameterization):
    """All m x n matrices, the entries being the parameters; for small cores of nested maps.

    Set: every matrix, complete. The one parameterization whose parameter has m x n entries.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    dtype, device
        Of the parameter.

    References
    ----------
    The trained matrix R of LoRA-XS (arXiv 2405.17604), equation 2.

    Examples
    --------
    >>> DenseCore((2, 3)).rank
    2
    """

    complete: bool = True

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(shape, min(shape))
        self.matrix: nn.Parameter = nn.Parameter(
            torch.zeros(*self.shape, dtype=dtype, device=device)
        )

    def factors(self) -> LowRankOperator:
        (m, n), R = self.shape, self.matrix
        eye, one = torch.eye(self.rank, dtype=R.dtype, device=R.device), R.new_ones(self.rank)
        return LowRankOperator(R, one, eye) if n <= m else LowRankOperator(eye, one, R.mT)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        return {"matrix": self.operator_of(target).to_dense()}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the matrix to 0; its gradient there is that of W itself."""
        self.matrix.zero_()
        return self
