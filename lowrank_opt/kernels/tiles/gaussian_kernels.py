"""A kernel that turns the sums of a row into its Gaussian posterior, one program a row.

A side z = (v, 1, b) has means, and the packed lower triangle of its second moments, as in
`lowrank_opt.kernels.loops.moments`; a row has the unknowns (u, a), the last one its bias.
"""

# pyright: basic

from __future__ import annotations

from lowrank_opt.kernels.tiles.language import constexpr, jit, tl
from lowrank_opt.kernels.tiles.small_systems import eliminate, sweep


@jit
def packed(p, q):
    """Return where the lower triangle has the pair (p, q), or (q, p)."""
    high, low = tl.maximum(p, q), tl.minimum(p, q)
    return high * (high + 1) // 2 + low


@jit
def posterior_kernel(
    summed,
    towards,
    scales,
    precision,
    pull,
    smallest,
    noise,
    means,
    products,
    quadratics,
    logdets,
    LINE: constexpr,
    TOWARDS: constexpr,
    D: constexpr,
    BLOCK: constexpr,
):
    """Write means, second moments, log determinant and expected squared prediction of a row.

    With `noise`, a draw, without second moments. Lines of `summed` are LINE apart, of `towards`
    TOWARDS; there are D unknowns.
    """
    i = tl.program_id(0).to(tl.int64)
    q = tl.arange(0, BLOCK)
    known = q < D
    both = known[:, None] & known[None, :]
    square = packed(q[:, None], q[None, :])
    S = tl.load(summed + i * LINE + square, mask=both, other=0.0).to(tl.float64)
    border = tl.load(summed + i * LINE + packed(D, q), mask=known, other=0.0).to(tl.float64)
    corner = tl.load(summed + i * LINE + packed(D, D)).to(tl.float64)
    scale = tl.load(scales + i)
    A = scale * S + tl.load(precision + q[:, None] * D + q[None, :], mask=both, other=0.0)
    target = tl.load(towards + i * TOWARDS + q, mask=known, other=0.0).to(tl.float64)
    b = scale * (target - border) + tl.load(pull + i * D + q, mask=known, other=0.0)
    floors = smallest * tl.sum(tl.where(q[:, None] == q[None, :], A, 0.0), 1)
    place = tl.where(q < D - 1, q, D)
    if noise is not None:
        x, _ = eliminate(A, b, noise + i * D, floors, D, BLOCK)
    else:
        C, logdet = sweep(A, floors, D, BLOCK)
        x = tl.sum(C * b[None, :], 1)
        tl.store(logdets + i, logdet)
        lower = both & (q[:, None] >= q[None, :])
        outer = C + x[:, None] * x[None, :]
        tl.store(products + i * LINE + packed(place[:, None], place[None, :]), outer, mask=lower)
        tl.store(products + i * LINE + packed(D - 1, place), x, mask=known)
        tl.store(products + i * LINE + packed(D - 1, D - 1), 1.0)
    tl.store(means + i * (D + 1) + place, x, mask=known)
    tl.store(means + i * (D + 1) + D - 1, 1.0)
    # Read once more: in registers all the while, they would not fit there.
    S = tl.load(summed + i * LINE + square, mask=both, other=0.0).to(tl.float64)
    quadratic = tl.sum(x * (tl.sum(S * x[None, :], 1) + 2 * border), 0) + corner
    if noise is None:
        quadratic += tl.sum(tl.sum(C * S, 1), 0)
    tl.store(quadratics + i, quadratic)
