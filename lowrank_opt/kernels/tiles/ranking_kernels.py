"""The best columns of some rows, without a table of all scores.

A program scores a tile of columns at a time and keeps the best so far. Scores and columns travel as
one integer, score first, so that the order is total: of equal scores the first column wins. What
is found in float32 is scored once more in the dtype of the rows.
"""

# pyright: basic

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.kernels.batches import backend as batches
from lowrank_opt.kernels.protocol import Ranked
from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.language import constexpr, jit, tl
from lowrank_opt.kernels.tiles.launch import aligned

# No score has this key.
NOTHING = -(1 << 63)


@jit
def ranking_kernel(
    rows,
    cols,
    offsets,
    allowed,
    seen,
    best,
    count,
    n,
    words,
    K: constexpr,
    ROWS: constexpr,
    COLS: constexpr,
    WIDTH: constexpr,
    TOP: constexpr,
    PIECE: constexpr,
    EMPTY: constexpr,
    PRECISION: constexpr,
):
    """Write the `TOP` best keys of each row among `PIECE` columns, the best first.

    A key is a float32 score in an order of integers, times 2^32, plus what the column lacks of
    2^32 - 1; EMPTY where there are too few columns. Bit j of a row of `seen`, `words` words long,
    leaves column j out.
    """
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = line < count
    q = tl.arange(0, WIDTH)
    u = tl.load(
        rows + line[:, None] * K + q[None, :], mask=alive[:, None] & (q < K)[None, :], other=0.0
    )
    kept = tl.full((ROWS, TOP), EMPTY, tl.int64)
    first = tl.program_id(1).to(tl.int64) * PIECE
    for start in range(0, PIECE, COLS):
        j = first + start + tl.arange(0, COLS)
        here = j < n
        v = tl.load(
            cols + j[:, None] * K + q[None, :], mask=here[:, None] & (q < K)[None, :], other=0.0
        )
        score = tl.dot(u, tl.trans(v), input_precision=PRECISION)
        score += tl.load(offsets + j, mask=here, other=0.0)[None, :]
        fit = alive[:, None] & (tl.load(allowed + j, mask=here, other=0) != 0)[None, :]
        if seen is not None:
            word = tl.load(
                seen + line[:, None].to(tl.int64) * words + (j // 32)[None, :],
                mask=alive[:, None] & here[None, :],
                other=0,
            )
            fit = fit & (((word >> (j % 32).to(tl.int32)[None, :]) & 1) == 0)
        bits = score.to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        keys = tl.where(fit, (ordered << 32) + (0xFFFFFFFF - j)[None, :], EMPTY)
        # Soon the best are known, and few tiles have a better one.
        better = tl.max(keys, 1) > tl.min(kept, 1)
        if tl.max(better.to(tl.int32), 0) > 0:
            both = tl.join(kept, tl.topk(keys, TOP))
            kept = tl.topk(tl.reshape(both, (ROWS, 2 * TOP)), TOP)
    place = line[:, None].to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    t = tl.arange(0, TOP)
    tl.store(best + place * TOP + t[None, :], kept, mask=alive[:, None])


def best_columns(given: Ranked, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row, and their columns."""
    (u, rank), n = given.rows.shape, len(given.cols)
    k = min(k, n)
    if rank > sizes.WIDEST or k + sizes.SPARE > sizes.MOST_RANKED or n >= 1 << 32 or u == 0:
        return batches.best_columns(given, k)
    # Some more than k: near ties in float32 are decided below.
    tile = sizes.ranking_tile(rank, k + sizes.SPARE)
    rows, cols = (aligned(x.to(torch.float32)) for x in (given.rows, given.cols))
    pieces = -(-n // sizes.RANKED_PIECE)
    keys = torch.empty(u, pieces * tile.top, dtype=torch.int64, device=rows.device)
    words = -(-n // 32)
    ranking_kernel[(-(-u // tile.rows), pieces)](
        rows,
        cols,
        given.offsets.to(torch.float32).contiguous(),
        given.allowed.to(torch.int8),
        _bits(given, words),
        keys,
        u,
        n,
        words,
        rows.shape[1],
        ROWS=tile.rows,
        COLS=tile.cols,
        WIDTH=tile.width,
        TOP=tile.top,
        PIECE=sizes.RANKED_PIECE,
        EMPTY=NOTHING,
        PRECISION="tf32x3",
        num_warps=tile.warps,
    )
    found = keys.topk(min(tile.top, keys.shape[1]), dim=1).values
    columns = (0xFFFFFFFF - (found & 0xFFFFFFFF)).clamp_max(n - 1)
    scores = torch.einsum("ur,utr->ut", given.rows, given.cols[columns]) + given.offsets[columns]
    scores = scores.where(found != NOTHING, -torch.inf)
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns.gather(1, order)[:, :k]


def _bits(given: Ranked, words: int) -> Tensor | None:
    """Return one bit for each row and column, set where the pair is left out."""
    lines, columns = given.seen
    if len(lines) == 0:
        return None
    bits = torch.zeros(len(given.rows) * words, dtype=torch.int32, device=lines.device)
    # Pairs are distinct: the sum of their bits is their union.
    marks = torch.ones_like(columns).bitwise_left_shift(columns % 32).to(torch.int32)
    return bits.index_add_(0, lines * words + columns // 32, marks).view(-1, words)
