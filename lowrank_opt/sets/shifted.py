"""The set of all ``C - offset``: what an update that starts at zero declares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet

if TYPE_CHECKING:
    from lowrank_opt.sets.base import Gradient


@dataclass(frozen=True, eq=False)
class ShiftedSet(FeasibleSet):
    """``{C - offset : C in inner}``: rank at most the sum of the two ranks.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> one = LowRankOperator.from_dense(torch.eye(2))
    >>> ShiftedSet(SchattenBall(1, 2.0, 2), one).contains(one - one)
    True
    """

    inner: FeasibleSet
    offset: LowRankOperator

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set plus that of the offset, at most min(m, n)."""
        return min(self.inner.rank + self.offset.rank, *self.offset.shape)

    @property
    def norm_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._said(self.inner.norm_name)

    @property
    def bound(self) -> str:
        return self._said(self.inner.bound)

    def _said(self, name: str) -> str:
        return "none" if self.inner.norm_name == "none" else f"shifted {name}"

    @property
    def size(self) -> float | None:
        return self.inner.size

    @property
    def frobenius_bound(self) -> float:
        return self.inner.frobenius_bound + float(self.offset.detach().schatten_norm(2))

    def scaled(self, factor: float) -> ShiftedSet:
        return ShiftedSet(self.inner.scaled(factor), factor * self.offset)

    def _shift(self, op: LowRankOperator, sign: int) -> LowRankOperator:
        return op + sign * self.offset.to(dtype=torch.float64)

    def excess(self, op: LowRankOperator) -> float:
        return self.inner.excess(self._shift(op, 1))

    def unit(self, op: LowRankOperator) -> float:
        """Return the unit of C plus the norm of the offset, which is rounded with it."""
        offset = float(self.offset.detach().schatten_norm(math.inf))
        return self.inner.unit(self._shift(op, 1)) + offset

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the norm of the inner projection."""
        return self._shift(self.inner.project(self._shift(op, 1)), -1).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        op = self.inner.sample(shape, generator=generator, dtype=torch.float64)
        return self._shift(op, -1).to(dtype=torch.get_default_dtype() if dtype is None else dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        inner = self.inner.lmo(gradient)
        return self._shift(inner, -1).to(dtype=inner.dtype)
