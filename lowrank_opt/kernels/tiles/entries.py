"""Loss, predictions and gradients on the observed entries, by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.kernels.batches import backend as batches
from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed
from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.entry_kernels import product_kernel, residual_kernel
from lowrank_opt.kernels.tiles.launch import Outputs, aligned, constants, grid, over_groups
from lowrank_opt.kernels.tiles.plan import Tasks, plan_of
from lowrank_opt.kernels.tiles.sizes import Tile
from lowrank_opt.observations import CompressedAxis, Observations


def squared_loss(
    model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
) -> tuple[Tensor, Gradient]:
    """Return the float64 sum of weighted squared residuals, and its gradient."""
    if model.left.shape[1] > sizes.WIDEST:
        return batches.squared_loss(model, observations, weights, needed)
    model, rank, axis = _aligned(model), model.left.shape[1], observations.csr
    w = observations.csr_weights if weights is None else weights[axis.order]
    left, dtype = model.left, _sum_dtype(model.left)
    out = Outputs(losses=left.new_empty(len(left), dtype=torch.float64))
    doubled = None
    if any(needed):
        doubled = left.new_empty(len(observations), dtype=dtype)
        sums, totals = torch.empty_like(left, dtype=dtype), left.new_empty(len(left), dtype=dtype)
        out = out._replace(sums=sums, totals=totals)
    residuals(axis, observations.csr_values, w, model, out, doubled)
    assert out.losses is not None, "made above"
    loss = out.losses.sum()
    if doubled is None:
        return loss, Gradient()
    d_right, d_col = _column_products(observations, doubled, left, needed)
    return loss, _wanted(Gradient(out.sums, d_right, out.totals, d_col), needed, rank)


def entries(model: ModelParts, observations: Observations) -> Tensor:
    """Return the predictions, in the order of the observations."""
    if model.left.shape[1] > sizes.WIDEST:
        return batches.entries(model, observations)
    model, axis = _aligned(model), observations.csr
    by_rows = model.left.new_empty(len(observations), dtype=_sum_dtype(model.left))
    residuals(axis, None, None, model, Outputs(), by_rows)
    out = torch.empty_like(by_rows)
    out[axis.order] = by_rows
    return out


def entries_gradient(
    model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
) -> Gradient:
    """Return the gradient of ``(gradient * entries).sum()``."""
    parts, rank = _aligned(model), model.left.shape[1]
    g = gradient[observations.csr.order].contiguous()
    d_left = d_row = None
    if needed.left or needed.row_bias:
        d_left, d_row = products(observations.csr, None, g, parts.right)
    d_right, d_col = _column_products(observations, g, parts.left, needed)
    return _wanted(Gradient(d_left, d_right, d_row, d_col), needed, rank)


def residuals(
    axis: CompressedAxis,
    values: Tensor | None,
    weights: Tensor | None,
    model: ModelParts,
    out: Outputs,
    doubled: Tensor | None,
) -> None:
    """Write what `residual_kernel` writes, for all groups of an axis.

    Parameters
    ----------
    axis : CompressedAxis
    values, weights : Tensor, shape (nnz,), or None
        In the order of the axis.
    model : ModelParts
        Lines of equal, aligned lengths: of the groups, and of the other axis.
    out : Outputs, written
    doubled : Tensor, shape (nnz,), or None, written
    """
    left, right, row_bias, col_bias = model
    K, dtype = left.shape[1], _sum_dtype(left)

    def start(tasks: Tasks, slots: Tensor, tile: Tile, out: Outputs) -> None:
        residual_kernel[grid(tasks, tile, K)[:1]](
            tasks.groups,
            slots,
            tasks.begins,
            tasks.ends,
            len(tasks.groups),
            axis.indices,
            values,
            weights,
            left,
            right,
            row_bias,
            col_bias,
            out.losses,
            out.fitted,
            doubled,
            out.sums,
            out.totals,
            K,
            **constants(tile, dtype),
        )

    over_groups(plan_of(axis), K, dtype, out, start)


def products(
    axis: CompressedAxis, positions: Tensor | None, coefficients: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``sum_k coefficients[k] vectors[indices[k]]`` of each group, and the sums alone.

    Parameters
    ----------
    axis : CompressedAxis
    positions : Tensor, shape (nnz,), or None
        Where the coefficients of the entries of the axis are.
    coefficients : Tensor, shape (nnz,)
    vectors : Tensor, shape (n, K)
        Of aligned lines.
    """
    groups, (_, K), dtype = len(axis.pointers) - 1, vectors.shape, _sum_dtype(vectors)
    sums = vectors.new_empty(groups, K, dtype=dtype)
    totals = vectors.new_empty(groups, dtype=dtype)

    def start(tasks: Tasks, slots: Tensor, tile: Tile, out: Outputs) -> None:
        product_kernel[grid(tasks, tile, K)](
            slots,
            tasks.begins,
            tasks.ends,
            len(tasks.groups),
            axis.indices,
            positions,
            coefficients,
            vectors,
            out.sums,
            out.totals,
            K,
            **constants(tile, dtype),
        )

    over_groups(plan_of(axis), K, dtype, Outputs(sums=sums, totals=totals), start)
    return sums, totals


def _column_products(
    observations: Observations, by_rows: Tensor, left: Tensor, needed: Needed
) -> tuple[Tensor | None, Tensor | None]:
    if not (needed.right or needed.col_bias):
        return None, None
    return products(observations.csc, observations.pattern.csr_of_csc, by_rows, left)


def _aligned(model: ModelParts) -> ModelParts:
    left, right = (aligned(x.detach()) for x in (model.left, model.right))
    a, b = (None if x is None else x.detach().contiguous() for x in model[2:])
    return ModelParts(left, right, a, b)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wanted(gradient: Gradient, needed: Needed, rank: int) -> Gradient:
    left, right, row_bias, col_bias = (
        x if need else None for x, need in zip(gradient, needed, strict=True)
    )
    left, right = (None if x is None else x[:, :rank].contiguous() for x in (left, right))
    return Gradient(left, right, row_bias, col_bias)
