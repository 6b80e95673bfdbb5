"""Norms and normalisations that neither overflow nor underflow.

One rule for what counts as zero serves the whole package: a vector whose largest entry is below
`negligible(dtype)` is treated as the zero vector, with gradient zero. Above it, a map such as
``x / norm(x)`` has a gradient of at most ``1 / negligible(dtype)``, which the dtype can hold.

What a map does not depend on (a common scale, a shift of the size of rounding) is computed from
detached tensors. ``torch.no_grad`` would not do: forward-mode tangents pass through it.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.linalg.forward_rule import (
    forward_rule,
    is_differentiated,
    or_zeros,
    with_signature,
)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which small systems and norms of `tensor` are computed.

    float64 wherever the device has it, float32 on devices that do not (Apple's MPS). Autocast and
    TF32 leave float64 alone, so a map evaluated in it keeps its guarantee under both.

    Examples
    --------
    >>> working_dtype(torch.zeros(2, dtype=torch.bfloat16))
    torch.float64
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def negligible(dtype: torch.dtype) -> float:
    """Return the size below which a parameter vector counts as zero.

    ``tiny / eps`` (1e-292 in float64, 1e-31 in float32 and 1.5e-36 in bfloat16), and ``tiny`` in
    float16, whose range is too short for more.

    Examples
    --------
    >>> negligible(torch.float32) < 1e-30
    True
    """
    info = torch.finfo(dtype)
    return info.tiny if dtype == torch.float16 else info.tiny / info.eps


def scale_to_unit_peak(*tensors: Tensor) -> tuple[Tensor, ...]:
    r"""Divide tensors by one power of two so that the largest entry lies in [0.5, 1).

    The division is exact (no rounding), and its factor is a constant to autograd: callers use it
    in maps that do not depend on the common scale, whose gradient therefore stays right.

    Parameters
    ----------
    *tensors : Tensor
        Any shapes, one dtype and device.

    Returns
    -------
    tuple of Tensor
        Same shapes and dtype; all zero, with zero gradient, if every entry is `negligible`.

    Examples
    --------
    >>> scale_to_unit_peak(torch.tensor([3e-30]), torch.tensor([1e-30]))[0] > 0.5
    tensor([True])
    """
    factor = unit_peak_factor(*tensors)
    return tuple(x * factor for x in tensors)


def unit_peak_factor(*tensors: Tensor) -> Tensor:
    """Return the power of two by which `scale_to_unit_peak` multiplies, a constant; or zero.

    Examples
    --------
    >>> unit_peak_factor(torch.tensor([3.0]), torch.tensor([5.0])).item()
    0.125
    """
    peaks = [x.detach().abs().amax() for x in tensors if x.numel() > 0]
    peak = torch.stack(peaks).amax() if peaks else tensors[0].detach().new_zeros(())
    keep = peak >= negligible(tensors[0].dtype)
    first, second, _ = inverse_power_of_two(torch.where(keep, peak, torch.ones_like(peak)))
    # One multiplication: what is kept needs no power of two that the dtype does not hold.
    return torch.where(keep, first * second, 0.0)


def is_negligible(*tensors: Tensor) -> Tensor:
    """Return whether every entry is negligible, a constant.

    Examples
    --------
    >>> is_negligible(torch.tensor([1e-35]), torch.zeros(2))
    tensor(True)
    """
    peaks = [x.detach().abs().amax() for x in tensors]
    return torch.stack(peaks).amax() < negligible(tensors[0].dtype)


def square_sum(x: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return the sum of the squares of ``factor * x``, in the working dtype.

    For the backward pass x is kept as it is, and no wider copy.

    Parameters
    ----------
    x : Tensor, any shape
    factor : Tensor, shape (), optional
        A constant, of the dtype of `x`; one by default, for dtypes narrower than the working dtype,
        whose squares it holds.

    Examples
    --------
    >>> square_sum(torch.tensor([3.0, 4.0]), torch.tensor(0.5))
    tensor(6.2500, dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return _widened(_times(x, factor)).square().sum()
    return cast("Tensor", _SquareSum.apply(x, factor))


def _widened(x: Tensor) -> Tensor:
    return x.to(working_dtype(x))


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor]


class _SquareSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, factor: Tensor | None) -> Tensor:
        dtype, x = working_dtype(x), _times(x, factor)
        if x.dtype == dtype:
            return x.square().sum()
        return torch.linalg.vector_norm(x, dtype=dtype).square()

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None]:
        x, factor = ctx.saved_tensors
        slope = _times(2 * gradients[0], None if factor is None else _widened(factor))
        return (_widened(_times(x, factor)) * slope).to(x.dtype), None

    jvp = staticmethod(forward_rule(lambda saved, tangents: _square_tangent(saved, tangents)))


def _square_tangent(saved: tuple[Tensor, Tensor], tangents: tuple[Tensor | None, ...]) -> Tensor:
    x, factor = saved
    (moved,) = or_zeros(tangents[:1], (x,))
    return 2 * (_widened(_times(x, factor)) * _widened(_times(moved, factor))).sum()


def inverse_power_of_two(peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return two powers of two whose product brings positive numbers into [0.5, 1).

    Parameters
    ----------
    peak : Tensor, any shape
        Positive and finite; a constant, as all that is returned.

    Returns
    -------
    first, second : Tensor
        To multiply by one after the other: the largest power of two is 2**1023, and a peak of
        1e-310 needs more.
    exponent : Tensor of int32
        Of the power of two that was divided by.

    Examples
    --------
    >>> first, second, exponent = inverse_power_of_two(torch.tensor(6.0))
    >>> (6.0 * first * second).item(), int(exponent)
    (0.75, 3)
    """
    _, exponent = torch.frexp(peak.detach())
    half = exponent // 2
    one = torch.ones_like(peak)
    return torch.ldexp(one, -half), torch.ldexp(one, half - exponent), exponent


def normalize_columns(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Divide every column by its Euclidean norm; a negligible column becomes zero.

    Parameters
    ----------
    x : Tensor, shape (..., m, r)
        Finite, of any magnitude.
    dtype : torch.dtype, optional
        Of the computation and of the result, instead of that of `x`. What is negligible remains a
        matter of `x`, whose dtype has to hold the gradient.

    Returns
    -------
    Tensor, shape (..., m, r)
        Columns of norm 1 to a few units of rounding, or exactly zero.

    Notes
    -----
    Entries near 1e-160 square to zero in float64, so the column is divided by its largest entry
    first. A column below `negligible` counts as zero and passes no gradient.

    Examples
    --------
    >>> normalize_columns(torch.tensor([[3e-30, 0.0], [4e-30, 0.0]]))
    tensor([[0.6000, 0.0000],
            [0.8000, 0.0000]])
    """
    dtype = x.dtype if dtype is None else dtype
    if x.shape[-2] == 0:
        return x.to(dtype)
    if dtype == torch.float64 != x.dtype and not torch.compiler.is_compiling():
        return cast("Tensor", _Units.apply(x, _inverse_norms(x.detach())))
    peak = x.detach().abs().amax(dim=-2, keepdim=True)
    keep = peak >= negligible(x.dtype)
    # Ones in place of negligible columns keep the discarded branch, and its gradient, finite.
    kept, peak = torch.where(keep, x, 1.0).to(dtype), torch.where(keep, peak, 1.0)
    unit_peak = kept / peak.to(dtype)
    norm = unit_peak.square().sum(dim=-2, keepdim=True).sqrt()
    return unit_peak * torch.where(keep, 1 / norm, 0.0)


class _Units(torch.autograd.Function):
    r"""Columns divided by their norms, given the inverses of these.

    :math:`du = (dx - u u^T dx) / \|x\|` is its own adjoint. Kept is x as it is, no wider copy.
    """

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(x: Tensor, inverse: Tensor) -> Tensor:
        return x * inverse

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        if is_differentiated():
            inverse = _inverse_norms(x)
        return _unit_motion(x, inverse, gradients[0]).to(x.dtype), None

    jvp = staticmethod(forward_rule(lambda saved, tangents: _unit_tangent(saved, tangents)))


def _unit_tangent(saved: tuple[Tensor, Tensor], tangents: tuple[Tensor | None, ...]) -> Tensor:
    x = saved[0]
    (moved,) = or_zeros(tangents[:1], (x,))
    return _unit_motion(x, _inverse_norms(x), moved)


def _unit_motion(x: Tensor, inverse: Tensor, moved: Tensor) -> Tensor:
    # Widened once: products of two dtypes widen at each.
    x = x.to(inverse.dtype)
    along = (x * moved).sum(dim=-2, keepdim=True) * inverse.pow(3)
    return torch.addcmul(moved * inverse, x, along, value=-1)


def _inverse_norms(x: Tensor) -> Tensor:
    """Return one over the norm of each column of a narrow dtype, in float64; 0 if negligible."""
    # Over any axis but the last, `max` is faster than `amax`.
    keep = x.detach().abs().max(dim=-2, keepdim=True).values >= negligible(x.dtype)
    # Squares of what narrower dtypes hold are in the range of float64.
    norms = torch.linalg.vector_norm(x, dim=-2, keepdim=True, dtype=torch.float64)
    return torch.where(keep, torch.where(keep, norms, 1.0).reciprocal(), 0.0)


def lp_norm(values: Tensor, p: float) -> Tensor:
    r"""Return :math:`(\sum_i |x_i|^p)^{1/p}` over the last axis, for any p in [1, inf].

    Parameters
    ----------
    values : Tensor, shape (..., r)
    p : float
        In [1, inf].

    Returns
    -------
    Tensor, shape (...)
        Zero for negligible values. Differentiable; at a zero vector the gradient is zero.

    Examples
    --------
    >>> lp_norm(torch.tensor([3e-200, 4e-200], dtype=torch.float64), 2)
    tensor(5.0000e-200, dtype=torch.float64)
    """
    size = values.abs()
    if values.shape[-1] == 0:
        return size.sum(dim=-1)
    if p == math.inf:
        return size.amax(dim=-1)
    if p == 1:
        return size.sum(dim=-1)
    peak = size.detach().amax(dim=-1, keepdim=True)
    keep = peak >= torch.finfo(values.dtype).tiny
    ratio = torch.where(keep, size, 1.0) / torch.where(keep, peak, 1.0)
    norm = ratio.pow(p).sum(dim=-1, keepdim=True).pow(1.0 / p)
    # Neither infinity nor NaN is negligible: the norm is the peak.
    norm = torch.where(peak.isfinite(), norm * peak, peak)
    return torch.where(keep | ~peak.isfinite(), norm, 0.0).squeeze(-1)


def top_k_sum(values: Tensor, k: int) -> Tensor:
    """Return the sum of the `k` largest magnitudes over the last axis (the Ky Fan gauge).

    Examples
    --------
    >>> top_k_sum(torch.tensor([1.0, -3.0, 2.0]), 2)
    tensor(5.)
    """
    size = values.abs()
    return size.topk(min(k, size.shape[-1]), dim=-1).values.sum(dim=-1)
