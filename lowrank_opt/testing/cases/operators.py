"""An operator on trial: made from a triple, made for a shape and a rank, or given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Trial

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class OperatorTrial(Trial[object]):
    """An operator at one case: what is passed, of the case's parameters."""

    def operator(self) -> LowRankOperator:
        """Return the operator; the one that was passed, if it is one."""
        if isinstance(self.make, LowRankOperator):
            return self.make
        if self.from_triple:
            return self.made(self.triple())
        make = cast("Callable[..., LowRankOperator]", self.make)
        made = make(self.case.shape, self.case.rank)
        return self._checked(made).to(dtype=self.dtype, device=self.device)

    @property
    def from_triple(self) -> bool:
        """Whether what was passed makes operators from a triple."""
        return not isinstance(self.make, LowRankOperator) and _arguments(self.make) != 2

    def made(self, parts: Triple) -> LowRankOperator:
        """Return the operator that is made from a triple."""
        make = cast("Callable[..., LowRankOperator]", self.make)
        return self._checked(make(*parts))

    def triple(self, *, batch: tuple[int, ...] = (), requires_grad: bool = False) -> Triple:
        """Return the case's left, scale and right."""
        (m, n), r = self.case.shape, self.case.rank
        left, scale, right = (
            self.case.parameters.tensor((*batch, *size), dtype=self.dtype, index=i)
            .to(self.device)
            .requires_grad_(requires_grad)
            for i, size in enumerate(((m, r), (r,), (n, r)))
        )
        return left, scale, right

    @staticmethod
    def _checked(made: object) -> LowRankOperator:
        if not isinstance(made, LowRankOperator):
            raise TypeError(f"make must return a LowRankOperator; got {type(made).__name__}")
        return made


def _arguments(make: object) -> int:
    parameters = inspect.signature(cast("Callable[..., object]", make)).parameters.values()
    return sum(p.default is inspect.Parameter.empty and p.kind < 2 for p in parameters)


def dense_of(parts: Triple) -> Tensor:
    """Return the dense matrix of a triple, in torch, differentiable."""
    left, scale, right = parts
    return (left * scale.unsqueeze(-2)) @ right.mT
