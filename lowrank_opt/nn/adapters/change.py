r"""What adapters make of one weight: :math:`W_0 + \Delta W`, perhaps with the lengths of its rows.

An adapter with magnitudes g has the weight :math:`\mathrm{diag}(g / \|V_i\|)\, V` with
:math:`V = W_0 + \Delta W`, which is :math:`W_0 + \mathrm{diag}(d)\, W_0 + \mathrm{diag}(1 + d)
\Delta W` with :math:`d_i = g_i / \|V_i\| - 1`: the base weight stays what it is, changes of several
adapters add, and nothing dense is needed but the base layer's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.basis.cut import Cut, as_dtensor, cut_with_gradients, in_place_of
from lowrank_opt.nn.basis.kinds import LayerKind, Side, linear_update, sum_with_update
from lowrank_opt.nn.basis.memory import is_same_view
from lowrank_opt.nn.basis.planned import added_in_parts
from lowrank_opt.nn.basis.sharded import is_sharded
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.composed.weight_decomposed import row_norms_of_sum
from lowrank_opt.parameterizations.turned.rotated_weight import RotatedWeight


class Magnitude(NamedTuple):
    """The lengths that an adapter gives to the rows or columns of each matrix of a weight.

    Attributes
    ----------
    side : {"rows", "columns"}
        Where the layer's outputs are.
    lengths : Tensor, shape (matrices, outputs)
        May be negative, which turns a row round.
    """

    side: Side
    lengths: Tensor


@dataclass(frozen=True)
class Change:
    r"""What is added to a weight: low-rank matrices, and the weight itself with other lengths.

    Attributes
    ----------
    ops : sequence of LowRankOperator
        One for each matrix of the weight.
    rows, columns : Tensor, shape (matrices, m) or (matrices, n), optional
        :math:`\mathrm{diag}(\text{rows}) W_0` and :math:`W_0 \mathrm{diag}(\text{columns})` are
        added too.
    """

    ops: Sequence[LowRankOperator]
    rows: Tensor | None = None
    columns: Tensor | None = None

    def __add__(self, other: Change) -> Change:
        return Change(
            [a + b for a, b in zip(self.ops, other.ops, strict=True)],
            _sum(self.rows, other.rows),
            _sum(self.columns, other.columns),
        )

    def times(self, factor: float) -> Change:
        """Return the change times a number."""
        if factor == 1.0:
            return self
        rows, columns = (None if x is None else factor * x for x in (self.rows, self.columns))
        return Change([factor * op for op in self.ops], rows, columns)

    def marked(self, mark: Callable[[Tensor], Tensor]) -> Change:
        """Return the change with a function applied to what has the gradients."""
        rows, columns = (None if x is None else mark(x) for x in (self.rows, self.columns))
        return Change([_with_left(op, mark(op.left)) for op in self.ops], rows, columns)

    def part(self, cut: Cut) -> Change:
        """Return what is added to one process's part of a weight."""
        summed = [i for i, side in enumerate(cut.sides) if side is not None]
        if not summed:
            return self
        op, *others = self.ops
        assert not others, "weights of several matrices are not cut"
        whole = [op.left, op.scale, op.right, self.rows, self.columns]
        left, scale, right, rows, columns = cut_with_gradients(whole, cut, summed)
        return Change([LowRankOperator(left, scale, right)], rows, columns)

    def of_outputs(self, kind: LayerKind) -> Tensor | None:
        """Return what of the lengths of the one matrix of a layer is added, for each output."""
        lengths = self.rows if kind.outputs == "rows" else self.columns
        return None if lengths is None else lengths[0]

    @property
    def sides(self) -> list[Side]:
        """Where there are lengths."""
        if self.rows is None:
            return [] if self.columns is None else ["columns"]
        return ["rows"] if self.columns is None else ["rows", "columns"]

    @property
    def low_rank(self) -> Sequence[LowRankOperator]:
        """The operators of a change that has no other part.

        Raises
        ------
        TargetError
            If it has lengths, and so the rank of the base weight.
        """
        if self.sides:
            raise not_low_rank("the weight")
        return self.ops

    def add_dense(self, weight: Tensor) -> Tensor:
        """Return the dense new weight, rounded once to the dtype of `weight`; cut as that is."""
        if is_sharded(weight):
            part = self.part(Cut.of(weight)).add_dense(as_dtensor(weight).to_local())
            return in_place_of(part, weight)
        dense = [op.to_dense() for op in self.ops]
        update = dense[0] if len(dense) == 1 else torch.stack(dense)
        if self.sides:
            W0 = weight.reshape(len(dense), *dense[0].shape)
            update = update.reshape(W0.shape)
            update = update if self.rows is None else update + W0 * self.rows.unsqueeze(2)
            update = update if self.columns is None else update + W0 * self.columns.unsqueeze(1)
        return (weight + update.reshape(weight.shape)).to(weight.dtype)


def fits(kind: LayerKind, side: Side | None) -> bool:
    """Whether a change with lengths on that side can be added to the output of a layer."""
    return kind.update is not None and (
        side is None or (side == kind.outputs and kind.rescale is not None)
    )


def all_fits(kind: LayerKind, change: Change) -> bool:
    """Whether all of a change can be added to the output of a layer."""
    return (change.rows is None or fits(kind, "rows")) and (
        change.columns is None or fits(kind, "columns")
    )


def is_turned(kind: LayerKind, layer: nn.Module, op: RotatedWeight, x: Tensor) -> bool:
    """Whether a layer, given a turned input, computes what it does with a turned weight.

    In narrow dtypes a small turn is lost in a sum with the input: there both are multiplied.
    """
    weight, own = layer._parameters.get("weight"), op.left  # pyright: ignore[reportPrivateUsage]
    if torch.compiler.is_compiling() or kind.update is not linear_update:
        return False
    return (
        type(weight) is nn.Parameter
        and type(own) is Tensor
        and not (weight.requires_grad and torch.is_grad_enabled())
        and x.dtype is weight.dtype is own.dtype
        and x.dtype in (torch.float32, torch.float64)
        and is_same_view(weight, own)
    )


def added(kind: LayerKind, layer: nn.Module, change: Change, x: Tensor, y: Tensor) -> Tensor:
    """Return what a change of a layer's weight, which `fits`, adds to its output y."""
    op, lengths = change.ops[0], change.of_outputs(kind)
    if type(y) is not Tensor and is_sharded(y):
        return added_in_parts(kind, layer, op, lengths, x, y)
    assert kind.update is not None, "others are called with dense weights"
    update = kind.update(layer, op, x, y).to(y.dtype)
    return update if lengths is None else update + _rescaled(kind, layer, lengths, x, y)


def with_update(
    kind: LayerKind,
    layer: nn.Module,
    op: LowRankOperator,
    lengths: Tensor | None,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Return a layer's output y with what a change of its weight adds to it, lengths included."""
    if type(y) is not Tensor and is_sharded(y):
        return y + added_in_parts(kind, layer, op, lengths, x, y)
    found = sum_with_update(kind, layer, op, x, y)
    return found if lengths is None else found + _rescaled(kind, layer, lengths, x, y)


def _rescaled(kind: LayerKind, layer: nn.Module, lengths: Tensor, x: Tensor, y: Tensor) -> Tensor:
    assert kind.rescale is not None, "others are called with dense weights"
    return kind.rescale(layer, lengths, x, y)


def rescaled(ops: Sequence[LowRankOperator], weight: Tensor, magnitude: Magnitude) -> Change:
    """Return the change that gives a sum the lengths of a magnitude, which alone has gradients.

    Lengths of the sum are constants in gradients, as in the paper and in PEFT; see
    `WeightDecomposed` for how they are computed, and how exactly. Where the sum is zero it stays.
    """
    side, lengths = magnitude
    norms = norms_of_sum(ops, weight, side).to(lengths)
    positive = norms > 0
    scales = torch.where(positive, lengths / torch.where(positive, norms, 1.0), 0.0)
    rescaled_ops = [_scaled(op, scale, side) for op, scale in zip(ops, scales, strict=True)]
    if side == "rows":
        return Change(rescaled_ops, rows=scales - 1)
    return Change(rescaled_ops, columns=scales - 1)


@torch.no_grad()
def norms_of_sum(ops: Sequence[LowRankOperator], weight: Tensor, side: Side) -> Tensor:
    """Return the lengths of the rows or columns of ``W0 + dW``, in float64 for wide dtypes."""
    if is_sharded(weight):
        cut = Cut.of(weight)
        parts = [cut.part(op) for op in ops]
        return cut.norms(norms_of_sum(parts, as_dtensor(weight.detach()).to_local(), side), side)
    matrices = weight.detach().reshape(len(ops), *ops[0].shape)
    rows = [
        row_norms_of_sum(W0, op) if side == "rows" else row_norms_of_sum(W0.mT, op.mT)
        for W0, op in zip(matrices, ops, strict=True)
    ]
    return torch.stack(rows)


def not_low_rank(name: str) -> TargetError:
    """Return the error for the use of magnitudes where low-rank changes are needed."""
    return TargetError(
        f"the change of a weight must be of low rank here; the adapter of {name} has magnitudes, "
        "which rescale whole rows of the base weight: train one without (magnitude=False), or use "
        "merge and switch, which take both"
    )


def _scaled(op: LowRankOperator, scale: Tensor, side: Side) -> LowRankOperator:
    column = scale.unsqueeze(1)
    if side == "rows":
        return LowRankOperator((op.left * column).to(op.left.dtype), op.scale, op.right)
    return LowRankOperator(op.left, op.scale, (op.right * column).to(op.right.dtype))


def _with_left(op: LowRankOperator, left: Tensor) -> LowRankOperator:
    return op if left is op.left else LowRankOperator(left, op.scale, op.right)


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y
