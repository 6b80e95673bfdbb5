"""What maps of the form ``W = A C B^T`` share, whatever the two sides are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from lowrank_opt.errors import NoRightInverseError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, check_member
from lowrank_opt.sets import FeasibleSet, LinearImage, SpectralSet
from lowrank_opt.sets.sides import Side


class Between(Parameterization):
    r""":math:`W = A\, C\, B^T`: any inner parameterization C between two fixed sides.

    A subclass holds what its sides are made of as buffers, and writes `sides` and `image`, the set
    of all ``A C B^T`` with C in the inner set. It inherits everything else: the factors
    :math:`(A L, s, B R)`, the right inverse through the C that the set pulls back, and the zero
    start of C. W is never formed.

    Parameters
    ----------
    inner : Parameterization
    shape : tuple of int
        Of W.
    """

    def __init__(self, inner: Parameterization, shape: tuple[int, int]) -> None:
        super().__init__(shape, min(inner.rank, *shape))
        self.inner = inner

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, Side]:
        """A and B, made anew from the buffers: cheap, and nothing is checked."""

    @property
    @abstractmethod
    def image(self) -> LinearImage:
        """The set of all ``A C B^T`` with C in the inner set."""

    @property
    def feasible_set(self) -> FeasibleSet:
        return self.image

    @property
    def invertible(self) -> bool:
        """Whether C is known from W: independent columns, or an inner set of singular values."""
        return isinstance(self.inner.feasible_set, SpectralSet) or all(
            side.independent for side in self.sides
        )

    @property
    def complete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every member of the set is reached."""
        return self.inner.complete and self.invertible

    def factors(self) -> LowRankOperator:
        return self.between(self.inner.factors())

    def between(self, C: LowRankOperator) -> LowRankOperator:
        """Return ``A C B^T`` for factors C of the inner shape, differentiable in them."""
        A, B = self.sides
        return LowRankOperator(A.times(C.left), C.scale, B.times(C.right))

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the inner right inverse of the C with the smallest singular values.

        Raises
        ------
        NoRightInverseError
            If columns of a side are dependent, and the inner set is not one of singular values.
        """
        if not self.invertible:
            raise NoRightInverseError(
                "a right inverse needs sides with independent columns, or an inner set of "
                f"singular values; got {self.inner.feasible_set}: scale features, not the set"
            )
        op = self.operator_of(target)
        check_member(op, self.feasible_set)
        core = self._settled(self.image.core(op), op.dtype)
        return {f"inner.{name}": value for name, value in self.inner.right_inverse(core).items()}

    def _settled(self, core: LowRankOperator, dtype: torch.dtype) -> LowRankOperator:
        """Return C, moved inside where rounding of W, enlarged on the way back, led outside."""
        inner, rounded = self.inner.feasible_set, core.to(dtype=dtype)
        return rounded if inner.contains(rounded) else inner.project(core).to(dtype=dtype)

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the inner parameterization to its zero start."""
        self.inner.zero_(generator=generator)
        return self
