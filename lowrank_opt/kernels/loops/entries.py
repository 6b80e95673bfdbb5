"""The operations on the CPU: numba passes over compressed rows and columns.

A thread takes ranges of whole groups (rows or columns) with about equally many entries. A group is
summed by one thread in one order, so that results do not depend on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.loops.passes import entries_pass, product_pass, squared_loss_pass
from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed
from lowrank_opt.observations import CompressedAxis, Observations

# Below this number of multiplications a pass is over before a second thread has started.
_WORTH_A_THREAD = 1 << 20
_RANGES_PER_THREAD = 4


def squared_loss(
    model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
) -> tuple[Tensor, Gradient]:
    """Return the float64 sum of weighted squared residuals, and its gradient."""
    left, right, row_bias, col_bias = _contiguous(model)
    rows, dtype, with_gradient = observations.csr, left.dtype, any(needed)
    w = observations.csr_weights if weights is None else weights[rows.order]
    losses = torch.empty(observations.shape[0], dtype=torch.float64)
    doubled = left.new_empty(len(observations)) if with_gradient else None
    d_left = torch.empty_like(left) if with_gradient else None
    d_row = torch.empty_like(row_bias) if with_gradient and row_bias is not None else None
    data = (observations.csr_values.to(dtype), None if w is None else w.to(dtype))
    parts = (left, right, row_bias, col_bias, losses, doubled, d_left, d_row)
    _sweep(squared_loss_pass, rows, left.shape[1], *data, *parts)
    loss = losses.sum()
    if doubled is None:
        return loss, Gradient()
    d_right, d_col = _column_products(observations, doubled, left, needed)
    return loss, _wanted(Gradient(d_left, d_right, d_row, d_col), needed)


def entries(model: ModelParts, observations: Observations) -> Tensor:
    """Return the predictions, in the order of the observations."""
    parts = _contiguous(model)
    by_rows = parts.left.new_empty(len(observations))
    _sweep(entries_pass, observations.csr, parts.left.shape[1], *parts, by_rows)
    out = torch.empty_like(by_rows)
    out[observations.csr.order] = by_rows
    return out


def entries_gradient(
    model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
) -> Gradient:
    """Return the gradient of ``(gradient * entries).sum()``."""
    left, right, _, _ = _contiguous(model)
    g = gradient[observations.csr.order]
    d_left = d_row = None
    if needed.left or needed.row_bias:
        d_left, d_row = torch.empty_like(left), left.new_empty(len(left))
        _sweep(product_pass, observations.csr, left.shape[1], None, g, right, d_left, d_row)
    d_right, d_col = _column_products(observations, g, left, needed)
    return _wanted(Gradient(d_left, d_right, d_row, d_col), needed)


def _column_products(
    observations: Observations, by_rows: Tensor, left: Tensor, needed: Needed
) -> tuple[Tensor | None, Tensor | None]:
    if not (needed.right or needed.col_bias):
        return None, None
    n, rank = observations.shape[1], left.shape[1]
    d_right, d_col = left.new_empty(n, rank), left.new_empty(n)
    positions = observations.pattern.csr_of_csc
    _sweep(product_pass, observations.csc, rank, positions, by_rows, left, d_right, d_col)
    return d_right, d_col


def _sweep(
    kernel: Callable[..., None], axis: CompressedAxis, rank: int, *parts: Tensor | None
) -> None:
    """Run a pass over all groups of `axis`, on torch's number of threads if that pays."""
    arguments = [_array(x) for x in (axis.pointers, axis.indices, *parts)]
    threads = torch.get_num_threads() if len(axis.order) * rank >= _WORTH_A_THREAD else 1
    if threads == 1:
        kernel(0, len(axis.pointers) - 1, *arguments)
        return
    bounds = _bounds(axis.pointers, threads * _RANGES_PER_THREAD)
    # Threads of its own: numba's pools abort the process after a fork or on concurrent entry.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda ends: kernel(*ends, *arguments), pairwise(bounds)))


def _bounds(pointers: Tensor, ranges: int) -> list[int]:
    """Cut groups into ranges of about equally many entries; return the ends."""
    targets = torch.linspace(0, float(pointers[-1]), ranges + 1, dtype=torch.float64)
    inner = torch.searchsorted(pointers, targets[1:-1].long()).tolist()
    return [0, *inner, len(pointers) - 1]


def _contiguous(model: ModelParts) -> ModelParts:
    return ModelParts(*(None if x is None else x.detach().contiguous() for x in model))  # pyright: ignore


def _wanted(gradient: Gradient, needed: Needed) -> Gradient:
    return Gradient(*(x if need else None for x, need in zip(gradient, needed, strict=True)))


def _array(x: Tensor | None) -> NDArray[np.generic] | None:
    return None if x is None else x.numpy()
