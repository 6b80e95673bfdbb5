"""Products and row norms of a frozen matrix in working precision, without a copy of it."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.linalg.forward_rule import forward_rule, with_signature
from lowrank_opt.linalg.scaling import working_dtype

# Numbers converted at once: half a mebibyte in float64, which stays in a processor's cache.
_BLOCK = 1 << 16
# Elsewhere a block costs a launch, and memory is reused without being cleared.
_DEVICE_BLOCK = 1 << 22


def frozen_product(weight: Tensor, right: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return ``factor * weight @ right`` in the dtype of `right`, differentiable in `right`.

    Rows of `weight` are converted a block at a time and again in the backward pass: what autograd
    keeps is `weight` itself. It gets no gradient. Transposes (``weight.mT``) are read in memory
    order. Derivatives of any order, forward and reverse. In compiled code one product is written.

    Parameters
    ----------
    weight : Tensor, shape (m, n)
        Of any floating dtype.
    right : Tensor, shape (n, k)
        In the precision that is wanted.
    factor : Tensor, shape (), optional
        Multiplies the rows before the product: a power of two that keeps it in range.

    Returns
    -------
    Tensor, shape (m, k)

    Examples
    --------
    >>> weight, right = torch.eye(2, dtype=torch.float16), torch.ones(2, 1, dtype=torch.float64)
    >>> frozen_product(weight, right).dtype
    torch.float64
    """
    weight, factor = weight.detach(), None if factor is None else factor.detach().to(right.dtype)
    if factor is None and weight.dtype == right.dtype:
        return weight @ right
    # A compiler fuses the conversion, and decides itself what is kept.
    if torch.compiler.is_compiling():
        return (
            weight.to(right.dtype) if factor is None else weight.to(right.dtype) * factor
        ) @ right
    return cast("Tensor", _FrozenProduct.apply(weight, right, factor))


def frozen_row_norms(weight: Tensor, factor: Tensor) -> Tensor:
    """Return the norms of the rows of ``factor * weight``, shape (m,), in the working dtype.

    Examples
    --------
    >>> huge = torch.full((1, 4), 1e200, dtype=torch.float64)
    >>> frozen_row_norms(huge, torch.tensor(1e-200, dtype=torch.float64))
    tensor([2.], dtype=torch.float64)
    """
    weight, dtype = weight.detach(), working_dtype(weight)
    # Squares of a narrower dtype are in range: one pass, conversion included.
    if torch.finfo(weight.dtype).max < math.sqrt(torch.finfo(dtype).max):
        return torch.linalg.vector_norm(weight, dim=1, dtype=dtype) * factor.to(dtype)
    blocks = _row_blocks(weight, factor, dtype)
    return torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in blocks])


def rows_at_once(weight: Tensor) -> int:
    """Return how many rows of a matrix are converted at once."""
    block = _BLOCK if weight.device.type == "cpu" else _DEVICE_BLOCK
    return max(1, block // max(1, weight.shape[1]))


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor | None]


class _FrozenProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(weight: Tensor, right: Tensor, factor: Tensor | None) -> Tensor:
        if weight.stride(0) < weight.stride(1):
            return _sum_of_blocks(weight.mT, right.mT, factor).mT
        # From the left by few long rows: the faster way to multiply by a few columns.
        X = right.mT.contiguous()
        blocks = _row_blocks(weight, factor, right.dtype)
        return torch.cat([X @ rows.mT for rows in blocks], dim=1).mT

    @staticmethod
    def setup_context(
        ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        # None may be saved, whatever the annotations of torch say.
        saved = cast("tuple[Tensor, Tensor]", (inputs[0], inputs[2]))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[None, Tensor, None]:
        weight, factor = ctx.saved_tensors
        return None, frozen_product(weight.mT, gradients[0], factor), None

    jvp = staticmethod(forward_rule(lambda saved, tangents: _tangent(saved, tangents)))


def _tangent(saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    weight, factor = saved
    direction = tangents[1]
    assert direction is not None, "the weight is a constant, so the other argument moves"
    return frozen_product(weight, direction, factor)


def _sum_of_blocks(weight: Tensor, left: Tensor, factor: Tensor | None) -> Tensor:
    """Return ``factor * left @ weight``, a block of rows of the weight after the other."""
    left = left.contiguous()
    total = left.new_zeros(left.shape[0], weight.shape[1])
    parts = left.split(rows_at_once(weight), dim=1)
    for part, rows in zip(parts, _row_blocks(weight, factor, left.dtype), strict=True):
        total = torch.addmm(total, part, rows)
    return total


def _row_blocks(weight: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor]:
    for rows in weight.split(rows_at_once(weight)):
        block = rows.to(dtype)
        yield block if factor is None else block * factor
