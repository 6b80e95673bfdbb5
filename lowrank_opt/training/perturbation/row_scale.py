"""Sizes of the filters of a layer, with a low-rank update merged, without forming it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_opt.operator import LowRankOperator

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Layers that store in_features x out_features.
_STORED_TRANSPOSED = {"transformers.pytorch_utils.Conv1D"}


def merged_row_norms(weight: Tensor, update: LowRankOperator | None = None) -> Tensor:
    r"""Return the norms of the rows of :math:`W + L\,\mathrm{diag}(s)\,R^T`, shape (m,).

    .. math:: |W_i|^2 + 2 \langle (W R)_i, (L s)_i \rangle + (L s)_i\, R^T R\, (L s)_i^T

    Parameters
    ----------
    weight : Tensor, shape (m, n)
    update : LowRankOperator, optional
        m x n. Sums of order r are taken in float64; a negative rounding error counts as zero.

    Examples
    --------
    >>> merged_row_norms(torch.eye(2), LowRankOperator.from_dense(torch.eye(2)))
    tensor([2., 2.])
    """
    squares = torch.linalg.vector_norm(weight, dim=1).double().square()
    if update is not None:
        scaled = (update.left * update.scale).double()
        cross = (weight @ update.right.to(weight.dtype)).double()
        gram = update.right.mT.double() @ update.right.double()
        squares = squares + ((2 * cross + scaled @ gram) * scaled).sum(1)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return squares.clamp_min(0).sqrt().to(dtype)


def filter_axis(module: nn.Module) -> int:
    """Return the axis of a layer's weight that counts its outputs: 1 for GPT-2's ``Conv1D``.

    Examples
    --------
    >>> filter_axis(nn.Linear(3, 2))
    0
    """
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    return int(bool(names & _STORED_TRANSPOSED))


def filter_scale(
    module: nn.Module,
    weight: Tensor,
    updates: LowRankOperator | Sequence[LowRankOperator] | None = None,
    *,
    axis: int | None = None,
) -> Tensor:
    r"""Return :math:`|W'_i| / \sqrt{n}` for each filter i, in a shape that broadcasts to `weight`.

    Filters are the slices along `axis`; a transposed convolution has one per output channel; of a
    vector every entry is a filter of its own; of a stack of matrices, every row of each.

    Parameters
    ----------
    module : nn.Module
        Owner of the weight.
    weight : Tensor, shape (m, ...)
    updates : LowRankOperator or sequence of them, optional
        Merged into a matrix of the same shape; several into the matrices of a stack.
    axis : int, optional
        Axis that counts the filters; by default that of the module.
    """
    if weight.ndim < 2:
        return weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    if updates is None or isinstance(updates, LowRankOperator):
        updates = [] if updates is None else [updates]
    if isinstance(module, _TRANSPOSED):
        return _output_channels(module, weight, *updates)
    if len(updates) > 1:
        return _stacked_rows(weight, updates)
    axis = filter_axis(module) if axis is None else axis
    rows = weight.movedim(axis, 0).flatten(1)
    update = updates[0] if updates else None
    if update is not None and axis == 1:
        update = update.mT
    norms = merged_row_norms(rows, update) / math.sqrt(rows.shape[1])
    return norms.view([-1 if k == axis else 1 for k in range(weight.ndim)])


def _stacked_rows(weight: Tensor, updates: Sequence[LowRankOperator]) -> Tensor:
    matrices = weight.reshape(-1, *weight.shape[-2:])
    pairs = zip(matrices, updates, strict=True)
    norms = torch.stack([merged_row_norms(x, op) for x, op in pairs])
    return norms.view(*weight.shape[:-1], 1) / math.sqrt(weight.shape[-1])


def _output_channels(
    module: nn.Module, weight: Tensor, update: LowRankOperator | None = None
) -> Tensor:
    """Return the sizes of all weights that feed one output channel, group by group."""
    groups = int(module.groups)  # pyright: ignore[reportArgumentType]
    count = len(weight) // groups
    sums: list[Tensor] = []
    for k, rows in enumerate(weight.flatten(1).split(count)):
        part = slice(k * count, (k + 1) * count)
        op = None if update is None else _rows_of(update, part).mT
        sums.append(merged_row_norms(rows.mT, op).square().view(weight.shape[1], -1).sum(1))
    per_channel = (torch.stack(sums) / weight[:count, 0].numel()).sqrt()
    every_row = per_channel.repeat_interleave(count, dim=0)
    return every_row.view(*every_row.shape, *(1,) * (weight.ndim - 2))


def _rows_of(op: LowRankOperator, part: slice) -> LowRankOperator:
    return LowRankOperator(op.left[part], op.scale, op.right)
