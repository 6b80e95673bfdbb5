"""Normal equations of all rows, by Triton kernels: made and solved in one program each."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.kernels.batches import backend as batches
from lowrank_opt.kernels.protocol import ModelParts, RowEntries
from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.entries import residuals
from lowrank_opt.kernels.tiles.language import type_of
from lowrank_opt.kernels.tiles.launch import Outputs, aligned
from lowrank_opt.kernels.tiles.plan import Tasks, plan_of
from lowrank_opt.kernels.tiles.row_kernels import gram_kernel, solve_kernel
from lowrank_opt.kernels.tiles.sizes import Tile


def solve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    precision: Tensor,
    strengths: Tensor,
    pull: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """Do what `RowProblems.solve` does; return the losses, shape (m,), float64."""
    if features.shape[1] > sizes.widest_gram(features.dtype):
        return batches.solve_rows(
            entries,
            x,
            features,
            offsets,
            scale=scale,
            precision=precision,
            strengths=strengths,
            pull=pull,
            noise=noise,
        )
    # Divided by the scale, which a draw has the root of, the Gram matrix stands alone.
    around = (None if pull is None else pull / scale, None if noise is None else noise / scale**0.5)
    solved = x.new_zeros(len(x), dtype=torch.int8)
    prior = (precision / scale, strengths, *around)
    return _each_row(entries, x, features, offsets, prior, solved).where(solved.bool(), torch.nan)


def improve_rows(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    *,
    diagonal: Tensor,
    strengths: Tensor,
    steps: int,
) -> Tensor:
    """Do what `RowProblems.improve` does; return the losses, shape (m,), float64."""
    if features.shape[1] > sizes.widest_gram(features.dtype):
        settings = {"diagonal": diagonal, "strengths": strengths}
        return batches.improve_rows(entries, x, features, offsets, **settings, steps=steps)
    prior = (diagonal.diag(), strengths, None, None)
    return _each_row(entries, x, features, offsets, prior, None, steps)


def _each_row(
    entries: RowEntries,
    x: Tensor,
    features: Tensor,
    offsets: Tensor,
    prior: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    solved: Tensor | None,
    steps: int = 0,
) -> Tensor:
    """Write the rows, and whether they were solved; return the losses."""
    F, size, offsets = aligned(features.detach()), x.shape[1], offsets.contiguous()
    out, K = aligned(x), F.shape[1]
    P, strengths, *around = prior
    solving = sizes.solve_dtype(K, F.dtype)
    lines = (P.to(solving).contiguous(), strengths.to(solving).contiguous())
    pull, noise = (None if v is None else aligned(v) for v in around)
    plan, tile = plan_of(entries.axis), sizes.gram_tile(K)
    data = (entries.axis.indices, entries.values, entries.weights, offsets, F)
    for tasks, grams in (
        (plan.whole, (None, None)),
        (plan.short, (None, None)),
        (plan.sums, _grams(plan.pieces, data, tile)),
    ):
        if tasks:
            solve_kernel[(len(tasks.groups),)](
                *(*tasks, *data, *grams, *lines, pull, noise, out, solved, K, size, steps),
                SOLVE=type_of(solving),
                **_constants(F, tile),
            )
    if out is not x:
        x.copy_(out[:, :size])
    losses = x.new_empty(len(x), dtype=torch.float64)
    model = ModelParts(out, F, None, offsets)
    residuals(entries.axis, entries.values, entries.weights, model, Outputs(losses=losses), None)
    return losses


def _grams(
    pieces: Tasks, data: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor], tile: Tile
) -> tuple[Tensor | None, Tensor | None]:
    if not pieces:
        return None, None
    features, count = data[-1], len(pieces.groups)
    dtype = torch.promote_types(features.dtype, torch.float32)
    grams = features.new_empty(count, tile.width, tile.width, dtype=dtype)
    moments = features.new_empty(count, tile.width, dtype=dtype)
    parts = (pieces.begins, pieces.ends, *data, grams, moments, features.shape[1])
    gram_kernel[(count,)](*parts, **_constants(features, tile))
    return grams, moments


def _constants(features: Tensor, tile: Tile) -> dict[str, object]:
    # Three products of tf32 parts are nearly those of float32.
    return {
        "BLOCK": tile.width,
        "ENTRIES": tile.entries,
        "ACC": type_of(features.dtype),
        "PRECISION": "ieee" if features.dtype == torch.float64 else "tf32x3",
        "num_warps": tile.warps,
    }
