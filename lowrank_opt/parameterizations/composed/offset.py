"""Any inner parameterization minus its start: W = 0 exactly, wherever the start is."""

from typing import Self

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, check_member
from lowrank_opt.sets import ShiftedSet


class Offset(Parameterization):
    r""":math:`W = C - C_0`, C any inner parameterization and :math:`C_0` its initial value.

    Set: the inner set shifted by :math:`-C_0`; rank at most the sum of both ranks, complete if the
    inner map is. The start is W = 0 *exactly*, in any arithmetic: with
    :math:`C = L R^T`, :math:`W = (L - L_0) R^T + L_0 (R - R_0)^T`, whose terms vanish one by one.

    Parameters
    ----------
    inner : Parameterization
    minus_initial : bool
        Take the present value of `inner` as the offset.
    offset : LowRankOperator, optional
        The matrix subtracted instead, with ``minus_initial=False``.

    Raises
    ------
    OptionError
        If neither or both offsets are asked for.

    References
    ----------
    PiSSA (arXiv 2404.02948) and DeLoRA (arXiv 2503.18225) subtract their initial product from the
    base weight; here the base weight is never touched.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> inner = Factored((3, 2), 1).assign(torch.ones(3, 2))
    >>> Offset(inner)().to_dense().abs().max().item()
    0.0
    """

    def __init__(
        self,
        inner: Parameterization,
        minus_initial: bool = True,
        *,
        offset: LowRankOperator | None = None,
    ) -> None:
        if minus_initial is not (offset is None):
            raise OptionError(
                "Offset subtracts the initial value or a given offset; got "
                f"minus_initial={minus_initial} and offset={offset!r}: choose one"
            )
        if offset is not None and offset.shape != inner.shape:
            raise ShapeError(f"the offset must have shape {inner.shape}; got {offset.shape}")
        super().__init__(inner.shape, inner.rank)
        self.inner = inner
        self.complete: bool = inner.complete
        self.register_buffer("offset_left", None)
        self.register_buffer("offset_right", None)
        self.offset_left: Tensor
        self.offset_right: Tensor
        self._subtract(inner.factors() if offset is None else offset)

    def options(self) -> dict[str, object]:
        return {"inner": self.inner, "minus_initial": False, "offset": self.offset}

    def _subtract(self, offset: LowRankOperator) -> None:
        left, scale, right = offset.detach().clone()
        like = _reference(self.inner)
        self.offset_left, self.offset_right = (left * scale).to(like), right.to(like)
        self.rank: int = self.feasible_set.rank

    @property
    def offset(self) -> LowRankOperator:
        """The matrix that is subtracted."""
        one = self.offset_left.new_ones(self.offset_left.shape[1])
        return LowRankOperator(self.offset_left, one, self.offset_right)

    @property
    def feasible_set(self) -> ShiftedSet:
        return ShiftedSet(self.inner.feasible_set, self.offset)

    def factors(self) -> LowRankOperator:
        inner = self.inner.factors()
        if inner.rank != self.offset_left.shape[1]:
            return inner - self.offset
        L, L0, R, R0 = inner.left * inner.scale, self.offset_left, inner.right, self.offset_right
        left, right = torch.cat((L - L0, L0), dim=1), torch.cat((R, R - R0), dim=1)
        return LowRankOperator(left, left.new_ones(left.shape[1]), right)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return the inner right inverse of ``W + C_0``."""
        op = self.operator_of(target)
        check_member(op, self.feasible_set)
        moved = op + self.offset.to(dtype=op.dtype)
        nearest = self.inner.feasible_set.project(moved)
        values = self.inner.right_inverse(nearest)
        return {f"inner.{name}": value for name, value in values.items()}

    @torch.no_grad()
    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Take the present inner value as the offset: W = 0 exactly, wherever the inner map is."""
        self._subtract(self.inner.factors())
        return self


def _reference(module: nn.Module) -> Tensor:
    """Return a tensor that tells the dtype and device of a module's parameters."""
    return next(module.parameters()).detach().new_empty(0)
