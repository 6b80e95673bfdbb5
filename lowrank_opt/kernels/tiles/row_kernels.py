"""Kernels that make the normal equations of a row and solve them where they are, one program a row.

The Gram matrix of a row lives in the registers of its program, is summed by products of tiles of
entries, and never leaves it, but for the pieces of long rows.
"""

# pyright: basic

from __future__ import annotations

from lowrank_opt.kernels.tiles.language import constexpr, jit, tl
from lowrank_opt.kernels.tiles.small_systems import descend, eliminate


@jit
def gram_of(
    begin,
    end,
    indices,
    values,
    weights,
    offsets,
    features,
    K: constexpr,
    BLOCK: constexpr,
    ENTRIES: constexpr,
    ACC: constexpr,
    PRECISION: constexpr,
):
    """Return ``sum w x x^T`` and ``sum w t x`` over the entries begin .. end - 1."""
    q = tl.arange(0, BLOCK)
    gram = tl.zeros((BLOCK, BLOCK), ACC)
    moment = tl.zeros((BLOCK,), ACC)
    for start in range(begin, end, ENTRIES):
        k = start + tl.arange(0, ENTRIES)
        here = k < end
        j = tl.load(indices + k, mask=here, other=0).to(tl.int64)
        x = tl.load(
            features + j[:, None] * K + q[None, :],
            mask=here[:, None] & (q < K)[None, :],
            other=0.0,
        ).to(ACC)
        t = tl.load(values + k, mask=here, other=0.0).to(ACC)
        t -= tl.load(offsets + j, mask=here, other=0.0).to(ACC)
        weighted = x
        if weights is not None:
            weighted = x * tl.load(weights + k, mask=here, other=0.0).to(ACC)[:, None]
        moment += tl.sum(weighted * t[:, None], 0)
        gram = tl.dot(tl.trans(weighted), x, gram, input_precision=PRECISION, out_dtype=ACC)
    return gram, moment


@jit
def gram_kernel(
    begins,
    ends,
    indices,
    values,
    weights,
    offsets,
    features,
    grams,
    moments,
    K: constexpr,
    BLOCK: constexpr,
    ENTRIES: constexpr,
    ACC: constexpr,
    PRECISION: constexpr,
):
    """Write the Gram matrix and the right-hand side of each piece of a long row."""
    piece = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(begins + piece), tl.load(ends + piece)
    data = (indices, values, weights, offsets, features)
    gram, moment = gram_of(begin, end, *data, K, BLOCK, ENTRIES, ACC, PRECISION)
    q = tl.arange(0, BLOCK)
    tl.store(grams + piece * BLOCK * BLOCK + q[:, None] * BLOCK + q[None, :], gram)
    tl.store(moments + piece * BLOCK + q, moment)


@jit
def solve_kernel(
    groups,
    begins,
    ends,
    indices,
    values,
    weights,
    offsets,
    features,
    grams,
    moments,
    precision,
    strengths,
    pull,
    noise,
    out,
    solved,
    K: constexpr,
    SIZE: constexpr,
    STEPS: constexpr,
    BLOCK: constexpr,
    ENTRIES: constexpr,
    ACC: constexpr,
    SOLVE: constexpr,
    PRECISION: constexpr,
):
    """Solve the normal equations of each row, or draw around their solution, in `SOLVE`.

    With `STEPS`, so many steps of conjugate gradients from `out` instead. There are `SIZE`
    unknowns; lines are K apart. With `grams`, begins and ends are those of the pieces of the row.
    Rows whose matrix is not positive definite stay as they were.
    """
    task = tl.program_id(0).to(tl.int64)
    i, begin, end = tl.load(groups + task), tl.load(begins + task), tl.load(ends + task)
    q = tl.arange(0, BLOCK)
    if grams is None:
        data = (indices, values, weights, offsets, features)
        gram, moment = gram_of(begin, end, *data, K, BLOCK, ENTRIES, ACC, PRECISION)
    else:
        gram = tl.zeros((BLOCK, BLOCK), ACC)
        moment = tl.zeros((BLOCK,), ACC)
        for piece in range(begin, end):
            gram += tl.load(grams + piece * BLOCK * BLOCK + q[:, None] * BLOCK + q[None, :])
            moment += tl.load(moments + piece * BLOCK + q)
    inside = (q < SIZE)[:, None] & (q < SIZE)[None, :]
    P = tl.load(precision + q[:, None] * SIZE + q[None, :], mask=inside, other=0.0)
    A = gram.to(SOLVE) + tl.load(strengths + i) * P
    b = moment.to(SOLVE)
    if pull is not None:
        b += tl.load(pull + i * K + q, mask=q < SIZE, other=0.0).to(SOLVE)
    if STEPS == 0:
        if noise is not None:
            noise += i * K
        x, well = eliminate(A, b, noise, None, SIZE, BLOCK)
        tl.store(out + i * K + q, x, mask=(q < SIZE) & well)
        tl.store(solved + i, well.to(tl.int8))
    else:
        x = tl.load(out + i * K + q, mask=q < SIZE, other=0.0).to(SOLVE)
        tl.store(out + i * K + q, descend(A, b, x, STEPS), mask=q < SIZE)
