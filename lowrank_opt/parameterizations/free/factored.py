"""Plain LoRA: every matrix of rank at most r, no norm bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_positive
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, lora_start_
from lowrank_opt.parameterizations.example import Example


class Factored(Parameterization):
    r""":math:`W = \text{scaling} \cdot \text{left}\, \text{right}^T`, the LoRA factorization.

    Set: all m x n matrices of rank at most `rank`, complete. Its norm has no bound, but weight
    decay on the factors is nuclear-norm decay:
    :math:`\|BA\|_* \le (\|A\|_F^2 + \|B\|_F^2)/2`.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    scaling : float
        LoRA's alpha / r. Positive.
    dtype, device, generator
        Of the parameters, and of their random start.

    References
    ----------
    Hu et al., LoRA (arXiv 2106.09685), section 4.1.

    Examples
    --------
    >>> op = Factored((4, 3), rank=2)()
    >>> op.shape, float(op.schatten_norm(2))
    ((4, 3), 0.0)
    """

    complete: bool = True
    alike_rows: ClassVar[str] = "left"
    alike_cols: ClassVar[str] = "right"

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
        self.left: nn.Parameter = nn.Parameter(
            torch.empty(m, self.rank, dtype=dtype, device=device)
        )
        self.right: nn.Parameter = nn.Parameter(
            torch.empty(n, self.rank, dtype=dtype, device=device)
        )
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example("Factored", cls, reference="arXiv 2106.09685")

    def factors(self) -> LowRankOperator:
        return LowRankOperator(
            self.left, self.left.new_full((self.rank,), self.scaling), self.right
        )

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        r"""Return the balanced factors :math:`U \Sigma^{1/2}`, :math:`V \Sigma^{1/2}`.

        For W = 0 the right factor is an orthonormal frame, so that the gradient does not vanish.
        """
        U, sigma, V = self.svd_of(target)
        if not bool(sigma.any()):
            return {"left": torch.zeros_like(U), "right": V}
        root = (sigma / self.scaling).sqrt()
        return {"left": U * root, "right": V * root}

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set left = 0 and right to a random orthonormal frame."""
        lora_start_(self.left, self.right, generator)
        return self
