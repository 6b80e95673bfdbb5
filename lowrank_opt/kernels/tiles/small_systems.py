"""Small symmetric systems inside a program, which holds one matrix in its registers.

One unknown after another is eliminated from all other equations: no index into registers is needed,
no factor is kept, and nothing is substituted back.
"""

# pyright: basic

from __future__ import annotations

from lowrank_opt.kernels.tiles.language import constexpr, jit, tl


@jit
def eliminate(A, b, noise, floors, SIZE: constexpr, BLOCK: constexpr):
    """Return ``A^-1 (b + chol(A) z)``, and whether A is positive definite; A is symmetric.

    The numbers z are at `noise`, a pointer, or there are none.
    A column of the Cholesky factor is known when its turn comes, and ``A^-1 chol(A) z`` is
    ``chol(A)^-T z``, the deviation of a draw. Pivots below `floors` are raised to them.
    """
    q = tl.arange(0, BLOCK)
    well = True
    inverses = tl.full((BLOCK,), 1.0, A.dtype)
    for p in range(SIZE):
        column = tl.sum(tl.where(q[None, :] == p, A, 0.0), 1)
        pivot = tl.sum(tl.where(q == p, column, 0.0), 0)
        if floors is not None:
            pivot = tl.maximum(pivot, tl.sum(tl.where(q == p, floors, 0.0), 0))
        well = well & (pivot > 0)
        # One division a step: they are slow.
        inverse = 1.0 / pivot
        inverses = tl.where(q == p, inverse, inverses)
        line = tl.where(q > p, column, 0.0)
        column = tl.where(q == p, 1.0, column * inverse)
        if noise is not None:
            root = tl.sqrt(pivot) * tl.load(noise + p).to(A.dtype)
            b += tl.where(q >= p, root * column, 0.0)
        others = tl.where(q == p, 0.0, column)
        b -= others * tl.sum(tl.where(q == p, b, 0.0), 0)
        A -= others[:, None] * line[None, :]
    return b * inverses, well


@jit
def sweep(A, floors, SIZE: constexpr, BLOCK: constexpr):
    """Return the inverse of A, symmetric positive definite, and its log determinant.

    Pivots below `floors` are raised to them, as for `eliminate`.
    """
    q = tl.arange(0, BLOCK)
    logdet = tl.sum(tl.zeros((BLOCK,), A.dtype), 0)
    for p in range(SIZE):
        column = tl.sum(tl.where(q[None, :] == p, A, 0.0), 1)
        pivot = tl.sum(tl.where(q == p, column, 0.0), 0)
        pivot = tl.maximum(pivot, tl.sum(tl.where(q == p, floors, 0.0), 0))
        logdet += tl.log(pivot)
        inverse = 1.0 / pivot
        share = column * inverse
        swept = A - share[:, None] * column[None, :]
        swept = tl.where(q[None, :] == p, share[:, None], swept)
        swept = tl.where(q[:, None] == p, share[None, :], swept)
        A = tl.where((q[:, None] == p) & (q[None, :] == p), -inverse, swept)
    return -A, logdet


@jit
def descend(A, b, x, STEPS: constexpr):
    """Return x after some steps of conjugate gradients towards ``A^-1 b``."""
    residual = b - tl.sum(A * x[None, :], 1)
    p = residual
    rr = tl.sum(residual * residual, 0)
    for _ in range(STEPS):
        Ap = tl.sum(A * p[None, :], 1)
        curved = tl.sum(p * Ap, 0)
        # A row that is solved exactly has p = 0, and stays.
        alpha = tl.where(rr > 0, rr / tl.where(rr > 0, curved, 1.0), 0.0)
        x += alpha * p
        residual -= alpha * Ap
        previous = rr
        rr = tl.sum(residual * residual, 0)
        p = residual + tl.where(previous > 0, rr / tl.where(previous > 0, previous, 1.0), 0.0) * p
    return x
