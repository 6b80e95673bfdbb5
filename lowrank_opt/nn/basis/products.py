"""What a low-rank weight does in each kind of layer, computed from its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.turned.rotated_weight import RotatedWeight, Rotation

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution moves over its input; the attributes of torch's modules.

    Examples
    --------
    >>> ConvGeometry.of(nn.Conv1d(2, 4, 3, padding=1)).padding
    (1,)
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, module: Convolution) -> ConvGeometry:
        """Return the geometry of a torch convolution."""
        return cls(
            tuple(module.kernel_size),
            tuple(module.stride),
            module.padding if isinstance(module.padding, str) else tuple(module.padding),
            tuple(module.dilation),
            module.groups,
            module.padding_mode,
        )

    @property
    def dimensions(self) -> int:
        """1, 2 or 3."""
        return len(self.kernel_size)

    def margins(self) -> list[int]:
        """Return the padding in the order of `torch.nn.functional.pad`, last axis first."""
        if self.padding == "valid":
            return [0] * (2 * self.dimensions)
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(p, p) for p in self.padding]
        return [side for pair in reversed(sides) for side in pair]


class Prepared(LowRankOperator):
    """Factors to be multiplied by many inputs: with the scale in one of the two.

    Rounded once more than those they are of, to the dtype of the factors; otherwise the same.
    """

    _first: Tensor
    _second: Tensor

    @classmethod
    def of(cls, op: LowRankOperator) -> LowRankOperator:
        """Return the same operator, prepared; as it is if the scale does not fit into a factor.

        Examples
        --------
        >>> op = LowRankOperator(torch.ones(3, 1), torch.tensor([2.0]), torch.ones(4, 1))
        >>> Prepared.of(op).linear(torch.ones(4))
        tensor([8., 8., 8.])
        """
        if type(op) is RotatedWeight:
            steps = tuple(D.to(op.left.dtype) for D in op.rotation.steps)
            return RotatedWeight(op.left, Rotation(steps, op.rotation.orders))
        if type(op) is not LowRankOperator:
            return op
        scaled = (op.left * op.scale.unsqueeze(-2)).to(op.dtype)
        zero = (op.left == 0) | (op.scale == 0).unsqueeze(-2)
        kept = zero | (scaled.abs() >= torch.finfo(op.dtype).tiny)
        if not bool((kept & scaled.isfinite()).all()):
            return op
        return cls._made(op, op.right, scaled.mT)

    @classmethod
    def _made(cls, op: LowRankOperator, first: Tensor, second: Tensor) -> Prepared:
        made = object.__new__(cls)
        vars(made).update(
            left=op.left, scale=op.scale, right=op.right, _first=first, _second=second
        )
        return made

    @cached_property
    def mT(self) -> LowRankOperator:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The transpose, prepared too."""
        return self._made(super().mT, self._second.mT, self._first.mT)

    @cached_property
    def _stacks(self) -> tuple[Tensor, Tensor]:
        return self._first.unsqueeze(0), self._second.unsqueeze(0)

    def linear(self, x: Tensor) -> Tensor:
        """Return ``x W^T``."""
        return x @ self._first @ self._second

    def plus_linear(self, y: Tensor, x: Tensor) -> Tensor:
        """Return ``y + x W^T``, of one dtype; for one sequence in two operations."""
        if x.ndim != 3 or len(x) != 1:
            return y + self.linear(x)
        first, second = self._stacks
        return torch.baddbmm(y, torch.bmm(x, first), second)


def tensors_of(op: LowRankOperator) -> tuple[Tensor, ...]:
    """Return what an operator holds; nothing is formed for it."""
    if isinstance(op, RotatedWeight):
        return op.left, op.scale, *op.rotation.steps
    return op.left, op.scale, op.right


def linear(op: LowRankOperator, x: Tensor) -> Tensor:
    """Return ``x W^T`` for x of shape (..., n), in the dtype of the factors."""
    dtype = op.left.dtype
    return op.linear(x if x.dtype is dtype else x.to(dtype))


def plus_linear(op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    """Return ``y + x W^T`` in the dtype of y."""
    if type(op) is Prepared and x.dtype is y.dtype is op.left.dtype:
        return op.plus_linear(y, x)
    update = linear(op, x)
    return y + (update if update.dtype is y.dtype else update.to(y.dtype))


def embedding(op: LowRankOperator, indices: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return the rows ``W[indices]``; those of `padding_idx` pass no gradient, as in torch.

    Parameters
    ----------
    op : LowRankOperator
        Of shape (words, features).
    indices : Tensor, shape (...)
    padding_idx : int, optional

    Returns
    -------
    Tensor, shape (..., features)
    """
    rows = (F.embedding(indices, op.left) * op.scale).to(op.dtype) @ op.right.mT
    if padding_idx is None:
        return rows
    return rows.where((indices != padding_idx).unsqueeze(-1), rows.detach())


def convolution(op: LowRankOperator, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Convolve with the weight ``W.view(out, in / groups, *kernel)``.

    Two convolutions: one over space with r filters, the same for every group, and one of size 1
    that mixes its r channels.

    Parameters
    ----------
    op : LowRankOperator
        Of shape (out, in / groups * prod(kernel)).
    x : Tensor, shape (batch, in, ...) or (in, ...)
    geometry : ConvGeometry
    """
    g, d = geometry, geometry.dimensions
    conv, x = _CONV[d], x.to(op.dtype)
    if x.ndim == d + 1:
        return convolution(op, x.unsqueeze(0), g).squeeze(0)
    padding = g.padding
    if g.padding_mode != "zeros":
        x, padding = F.pad(x, g.margins(), mode=g.padding_mode), 0
    ones, r = (1,) * d, op.rank
    filters = (op.right * op.scale).to(op.dtype).mT.reshape(r, -1, *g.kernel_size)
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch * g.groups, channels // g.groups, *x.shape[2:])
    hidden = conv(grouped, filters, None, g.stride, padding, g.dilation)
    hidden = hidden.reshape(batch, g.groups * r, *hidden.shape[2:])
    return conv(hidden, op.left.reshape(-1, r, *ones), groups=g.groups)


def transposed_convolution(
    op: LowRankOperator, x: Tensor, geometry: ConvGeometry, output_size: tuple[int, ...]
) -> Tensor:
    """Convolve, transposed, with the weight ``W.view(in, out / groups, *kernel)``.

    Parameters
    ----------
    op : LowRankOperator
        Of shape (in, out / groups * prod(kernel)).
    x : Tensor, shape (batch, in, ...) or (in, ...)
    geometry : ConvGeometry
    output_size : tuple of int
        The sizes of the output's spatial axes.
    """
    g, d, r = geometry, geometry.dimensions, op.rank
    x = x.to(op.dtype)
    if x.ndim == d + 1:
        return transposed_convolution(op, x.unsqueeze(0), g, output_size).squeeze(0)
    mixing = op.left.reshape(g.groups, -1, r).mT.reshape(g.groups * r, -1, *(1,) * d)
    hidden = _CONV[d](x, mixing, groups=g.groups)
    hidden = hidden.reshape(x.shape[0] * g.groups, r, *x.shape[2:])
    filters = (op.right * op.scale).to(op.dtype).mT.reshape(r, -1, *g.kernel_size)
    padding = g.padding if isinstance(g.padding, tuple) else (0,) * d
    extra = [
        size - ((n - 1) * s - 2 * p + e * (k - 1) + 1)
        for size, n, s, p, e, k in zip(
            output_size, x.shape[2:], g.stride, padding, g.dilation, g.kernel_size, strict=True
        )
    ]
    out = _TRANSPOSED[d](hidden, filters, None, g.stride, padding, extra, 1, g.dilation)
    return out.reshape(x.shape[0], g.groups * out.shape[1], *out.shape[2:])
