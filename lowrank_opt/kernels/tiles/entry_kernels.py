"""Kernels over the entries of groups (rows or columns): residuals, and sums of vectors.

A program takes a tile of groups, `ENTRIES` entries of each at a time, and reads the vectors of
those entries once, for the prediction and for the gradient; nothing of size entries x rank exists.
Groups of a tile are about equally long. Sums run in `ACC`, losses in float64.
Arguments that are None select a variant without that part.
"""

# pyright: basic

from __future__ import annotations

from lowrank_opt.kernels.tiles.language import constexpr, jit, tl


@jit
def residual_kernel(
    groups,
    slots,
    begins,
    ends,
    count,
    indices,
    values,
    weights,
    left,
    right,
    row_bias,
    col_bias,
    losses,
    fitted,
    doubled,
    sums,
    totals,
    K: constexpr,
    ROWS: constexpr,
    ENTRIES: constexpr,
    WIDTH: constexpr,
    ACC: constexpr,
):
    """Write the loss of each group, twice its weighted residuals and their sums with vectors.

    Without `values`, `doubled` receives the predictions. `left` has a line for each group, the
    outputs one for each slot; lines are K apart.
    """
    task = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = task < count
    group = tl.load(groups + task, mask=alive, other=0)
    slot = tl.load(slots + task, mask=alive, other=0)
    begin = tl.load(begins + task, mask=alive, other=0)
    end = tl.load(ends + task, mask=alive, other=0)
    q = tl.arange(0, WIDTH)
    inside = alive[:, None] & (q < K)[None, :]
    u = tl.load(left + group[:, None] * K + q[None, :], mask=inside, other=0.0).to(ACC)
    if row_bias is not None:
        a = tl.load(row_bias + group, mask=alive, other=0.0).to(ACC)
    loss = tl.zeros((ROWS,), tl.float64)
    square = tl.zeros((ROWS,), tl.float64)
    total = tl.zeros((ROWS,), ACC)
    part = tl.zeros((ROWS, WIDTH), ACC)
    for start in range(0, tl.max(end - begin), ENTRIES):
        k = begin[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        here = k < end[:, None]
        j = tl.load(indices + k, mask=here, other=0).to(tl.int64)
        x = tl.load(
            right + j[:, :, None] * K + q[None, None, :],
            mask=here[:, :, None] & (q < K)[None, None, :],
            other=0.0,
        ).to(ACC)
        p = tl.sum(x * u[:, None, :], 2)
        if row_bias is not None:
            p += a[:, None]
        if col_bias is not None:
            p += tl.load(col_bias + j, mask=here, other=0.0).to(ACC)
        if values is None:
            tl.store(doubled + k, p, mask=here)
        else:
            e = tl.where(here, p - tl.load(values + k, mask=here, other=0.0).to(ACC), 0.0)
            weighted = e
            if weights is not None:
                w = tl.load(weights + k, mask=here, other=0.0).to(ACC)
                weighted = w * e
            loss += tl.sum(weighted.to(tl.float64) * e.to(tl.float64), 1)
            if fitted is not None:
                p = tl.where(here, p, 0.0).to(tl.float64)
                if weights is not None:
                    square += tl.sum(w.to(tl.float64) * p * p, 1)
                else:
                    square += tl.sum(p * p, 1)
            if doubled is not None:
                g = weighted + weighted
                tl.store(doubled + k, g, mask=here)
                total += tl.sum(g, 1)
                part += tl.sum(g[:, :, None] * x, 1)
    if losses is not None:
        tl.store(losses + slot, loss, mask=alive)
    if fitted is not None:
        tl.store(fitted + slot, square, mask=alive)
    if sums is not None:
        tl.store(sums + slot[:, None] * K + q[None, :], part, mask=inside)
    if totals is not None:
        tl.store(totals + slot, total, mask=alive)


@jit
def product_kernel(
    slots,
    begins,
    ends,
    count,
    indices,
    positions,
    coefficients,
    vectors,
    sums,
    totals,
    K: constexpr,
    ROWS: constexpr,
    ENTRIES: constexpr,
    WIDTH: constexpr,
    ACC: constexpr,
):
    """Write ``sum_k coefficients[k] vectors[indices[k]]`` for each group, `WIDTH` numbers of it.

    With `positions`, the coefficient of entry k is at ``positions[k]``.
    """
    task = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = task < count
    slot = tl.load(slots + task, mask=alive, other=0)
    begin = tl.load(begins + task, mask=alive, other=0)
    end = tl.load(ends + task, mask=alive, other=0)
    q = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((ROWS,), ACC)
    part = tl.zeros((ROWS, WIDTH), ACC)
    for start in range(0, tl.max(end - begin), ENTRIES):
        k = begin[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        here = k < end[:, None]
        j = tl.load(indices + k, mask=here, other=0).to(tl.int64)
        if positions is not None:
            k = tl.load(positions + k, mask=here, other=0).to(tl.int64)
        g = tl.load(coefficients + k, mask=here, other=0.0).to(ACC)
        x = tl.load(
            vectors + j[:, :, None] * K + q[None, None, :],
            mask=here[:, :, None] & (q < K)[None, None, :],
            other=0.0,
        ).to(ACC)
        total += tl.sum(g, 1)
        part += tl.sum(g[:, :, None] * x, 1)
    tl.store(sums + slot[:, None] * K + q[None, :], part, mask=alive[:, None] & (q < K)[None, :])
    if totals is not None:
        tl.store(totals + slot, total, mask=alive & (tl.program_id(1) == 0))
