"""Normalized LoRA: the down-projection normalised along the rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_positive
from lowrank_opt.errors import NoRightInverseError
from lowrank_opt.linalg import normalize_columns, working_dtype
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.example import Example

Shape = tuple[int, int]


class NormalizedLoRA(Parameterization):
    r""":math:`W = \text{scaling} \cdot B\, N(A)`, every column of A of norm one: "NoRA" of 2026.

    The published method normalises the down-projection A (r x n) along the rank, at every step or
    (``every_step=False``) once, at the start. The same short name belongs to nested NoRA, which is
    `lowrank_opt.nora`.

    Set: rank at most r. Not complete: all matrices of rank r - 1 are reached, and of those of rank
    r the ones whose columns lie on an ellipsoid. No norm bound. A column of A that is zero stays
    zero. The authors' code (github.com/Joluck/NoRA) divides by the norm plus 1e-6, here by the norm
    itself; to divide by the root mean square instead is :math:`\sqrt r` times the `scaling`.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``.
    rank : int
    scaling : float
        Positive.
    every_step : bool
        Otherwise a plain product whose right factor starts normalised.
    dtype, device, generator
        Of the parameters, and of their random start.

    Raises
    ------
    OptionError
        If the scaling is not positive and finite.

    References
    ----------
    Kang et al., Normalized Low-Rank Adaptation (arXiv 2608.31036).

    Examples
    --------
    >>> layer = NormalizedLoRA((5, 4), rank=2)
    >>> torch.nn.init.normal_(layer.right).shape, layer().right.norm(dim=1).detach()
    (torch.Size([4, 2]), tensor([1., 1., 1., 1.]))
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        scaling: float = 1.0,
        every_step: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape, rank)
        m, n = self.shape
        self.scaling: float
        self.every_step: bool
        self.scaling, self.every_step = check_positive(scaling, "scaling"), every_step
        self.complete: bool = not every_step
        empty = torch.empty(0, dtype=dtype, device=device)
        self.left: nn.Parameter = nn.Parameter(empty.new_zeros(m, self.rank))
        self.right: nn.Parameter = nn.Parameter(empty.new_empty(n, self.rank))
        self.zero_(generator=generator)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        image = "rank r - 1, and columns of rank r on an ellipsoid"
        yield Example("NormalizedLoRA", cls, "norms of rows", "arXiv 2608.31036", image)

    def factors(self) -> LowRankOperator:
        right = _unit_rows(self.right).to(self.right.dtype) if self.every_step else self.right
        return LowRankOperator(self.left, self.left.new_full((self.rank,), self.scaling), right)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return factors of a target of rank r - 1 at most; one column makes the norms equal.

        Raises
        ------
        NoRightInverseError
            If the target has rank r: few of those are reached, and none is looked for.
        """
        U, sigma, V = self.svd_of(target)
        if not self.every_step:
            root = (sigma / self.scaling).sqrt()
            return {"left": U * root, "right": V * root}
        noise = 64 * torch.finfo(self.left.dtype).eps * sigma[:1]
        if bool((sigma[-1:] > noise).any()):
            raise NoRightInverseError(
                f"a target of NormalizedLoRA must have rank at most {self.rank - 1}; got "
                f"{self.rank}: use a rank of one more"
            )
        v = V[:, :-1]
        norms = v.square().sum(1)
        t = 1 / norms.amax().clamp_min(1.0 / len(v)).sqrt() if v.shape[1] else 1.0
        rest = (1 - t**2 * norms).clamp_min(0).sqrt().unsqueeze(1)
        left = torch.cat(
            (U[:, :-1] * (sigma[:-1] / t / self.scaling), torch.zeros_like(U[:, :1])), 1
        )
        return {"left": left, "right": torch.cat((t * v, rest), dim=1)}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set B = 0 and A to random columns of norm one."""
        self.left.zero_()
        device = generator.device if generator is not None else torch.device("cpu")
        normal = torch.randn(
            self.right.shape, dtype=torch.float64, device=device, generator=generator
        )
        self.right.copy_(_unit_rows(normal).to(self.right))
        return self


def _unit_rows(x: Tensor) -> Tensor:
    return normalize_columns(x.mT, dtype=working_dtype(x)).mT
