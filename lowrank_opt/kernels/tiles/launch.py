"""How kernels over groups of entries are started: which tile, which tasks, where results go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.language import type_of
from lowrank_opt.kernels.tiles.plan import Plan, Tasks
from lowrank_opt.kernels.tiles.sizes import Tile


class Outputs(NamedTuple):
    """What a pass over the groups writes: a line, or a number, for each; None where unwanted."""

    losses: Tensor | None = None
    fitted: Tensor | None = None
    sums: Tensor | None = None
    totals: Tensor | None = None

    def like(self, lines: int) -> Outputs:
        """Return outputs of the same kinds for another number of groups."""
        return Outputs(*(None if x is None else x.new_empty(lines, *x.shape[1:]) for x in self))


Start = Callable[[Tasks, Tensor, Tile, Outputs], None]


def over_groups(plan: Plan, width: int, dtype: torch.dtype, out: Outputs, start: Start) -> None:
    """Start a kernel for short groups, whole ones and pieces; sum the results of pieces.

    Parameters
    ----------
    plan : Plan
    width : int
        Of the vectors.
    dtype : torch.dtype
        Of sums.
    out : Outputs, written
    start : callable
        Of tasks, the lines of their results, a tile, and outputs.
    """
    short, whole = sizes.vector_tiles(width, dtype)
    for tasks, tile in ((plan.short, short), (plan.whole, whole)):
        if tasks:
            start(tasks, tasks.groups, tile, out)
    if plan.pieces:
        parts = out.like(len(plan.pieces.groups))
        slots = torch.arange(len(plan.pieces.groups), device=plan.long.device)
        start(plan.pieces, slots, whole, parts)
        for whole_of, part in zip(out, parts, strict=True):
            if whole_of is not None and part is not None:
                whole_of[plan.long] = torch.segment_reduce(
                    part, "sum", offsets=plan.bounds, axis=0, unsafe=True
                )


def constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """Return the keywords that all kernels over vectors have."""
    return {
        "ROWS": tile.rows,
        "ENTRIES": tile.entries,
        "WIDTH": tile.width,
        "ACC": type_of(dtype),
        "num_warps": tile.warps,
    }


def grid(tasks: Tasks, tile: Tile, width: int) -> tuple[int, int]:
    """Return the number of programs: over tasks, and over parts of the vectors."""
    return -(-len(tasks.groups) // tile.rows), -(-width // tile.width)


def aligned(x: Tensor) -> Tensor:
    """Return lines of a length that is read sixteen bytes at a time, zeros at their ends."""
    lack = -x.shape[1] % sizes.ALIGNED
    return torch.nn.functional.pad(x, (0, lack)) if lack else x.contiguous()
