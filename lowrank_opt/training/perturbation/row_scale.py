"""Sizes of the filters of a layer, with a low-rank update merged, without forming it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowrank_opt.operator import LowRankOperator

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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


def filter_scale(
    module: nn.Module, weight: Tensor, update: LowRankOperator | None = None, *, axis: int = 0
) -> Tensor:
    r"""Return :math:`|W'_i| / \sqrt{n}` for each filter i, in a shape that broadcasts to `weight`.

    Filters are the slices along `axis`; a transposed convolution has one per output channel; of a
    vector every entry is a filter of its own.

    Parameters
    ----------
    module : nn.Module
        Owner of the weight.
    weight : Tensor, shape (m, ...)
    update : LowRankOperator, optional
        Merged into a matrix of the same shape.
    axis : int
        Axis that counts the filters.
    """
    if weight.ndim < 2:
        return weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    if isinstance(module, _TRANSPOSED):
        grouped = weight.unflatten(0, (module.groups, -1))
        dims = (1, *range(3, grouped.ndim))
        norms = torch.linalg.vector_norm(grouped, dim=dims, keepdim=True)
        size = grouped[0].numel() // grouped.shape[2]
        return norms.expand_as(grouped).flatten(0, 1) / math.sqrt(size)
    rows = weight.movedim(axis, 0).flatten(1)
    if update is not None and axis == 1:
        update = update.mT
    norms = merged_row_norms(rows, update) / math.sqrt(rows.shape[1])
    return norms.view([-1 if k == axis else 1 for k in range(weight.ndim)])
