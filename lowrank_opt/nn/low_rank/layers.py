"""Layers whose weight is a parameterization: the weight is never formed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.nn.basis.products import ConvGeometry, convolution, embedding, linear
from lowrank_opt.nn.low_rank.starts import start_at_random_
from lowrank_opt.parameterizations import Parameterization

Start: TypeAlias = Literal["random", "given"]


class LowRankLinear(nn.Module):
    """``y = x W^T + b`` with W a parameterization of shape (out, in).

    Parameters
    ----------
    weight : Parameterization
        Of shape ``(out_features, in_features)``.
    bias : bool
        Whether to add a trained bias, zero at the start.
    start : {"random", "given"}
        What a parameterization that is at zero becomes: the member of its set nearest to a random
        matrix of its rank, whose entries have the variance ``1 / (3 in_features)`` of torch's own
        layers, or zero still. At zero, a stack of such layers has no gradient and never learns.
    generator : torch.Generator, optional
        Of the random start.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> layer = LowRankLinear(NBLoRA((6, 4), rank=2, radius=1.0))
    >>> layer(torch.ones(3, 4)).shape
    torch.Size([3, 6])
    """

    def __init__(
        self,
        weight: Parameterization,
        *,
        bias: bool = True,
        start: Start = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.out_features: int
        self.in_features: int
        self.out_features, self.in_features = weight.shape
        self.weight: Parameterization = _started(
            weight, 1 / (3 * self.in_features), start, generator
        )
        self.bias: nn.Parameter | None = _zero_bias(weight) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b`` for x of shape (..., in_features)."""
        y = linear(self.weight(), x).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class LowRankEmbedding(nn.Module):
    """Rows of a low-rank table; only the rows asked for are computed.

    Parameters
    ----------
    weight : Parameterization
        Of shape ``(num_embeddings, embedding_dim)``.
    padding_idx : int, optional
        Its row passes no gradient; negative indices count from the end.
    start, generator
        As for `LowRankLinear`; the variance is 1.

    Raises
    ------
    ShapeError
        If `padding_idx` is no row of the table.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> LowRankEmbedding(Factored((10, 4), rank=2))(torch.tensor([[0, 9]])).shape
    torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        weight: Parameterization,
        *,
        padding_idx: int | None = None,
        start: Start = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weight: Parameterization = _started(weight, 1.0, start, generator)
        self.num_embeddings: int
        self.embedding_dim: int
        self.num_embeddings, self.embedding_dim = rows, _ = weight.shape
        if padding_idx is not None and not -rows <= padding_idx < rows:
            raise ShapeError(f"padding_idx must be in -{rows}..{rows - 1}; got {padding_idx}")
        self.padding_idx: int | None = padding_idx if padding_idx is None else padding_idx % rows

    def forward(self, indices: Tensor) -> Tensor:
        """Return ``W[indices]``, shape (..., embedding_dim)."""
        return embedding(self.weight(), indices, self.padding_idx)


class _LowRankConv(nn.Module):
    r"""A convolution with the weight ``W.view(out, in / groups, *kernel)``.

    Runs as a spatial convolution with r filters and a convolution of size 1.

    Parameters
    ----------
    weight : Parameterization
        Of shape ``(out_channels, in_channels / groups * prod(kernel_size))``.
    kernel_size, stride, dilation : int or sequence of int
    padding : int, sequence of int, "same" or "valid"
    groups : int
    padding_mode : str
        As in torch: "zeros", "reflect", "replicate" or "circular".
    bias : bool
    start, generator
        As for `LowRankLinear`; the variance is ``1 / (3 n)`` for n columns.

    Raises
    ------
    ShapeError
        If the kernel or the groups do not divide the shape of `weight`.
    """

    dimensions: ClassVar[int]

    def __init__(
        self,
        weight: Parameterization,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
        start: Start = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.geometry: ConvGeometry = ConvGeometry(
            self._sizes(kernel_size),
            self._sizes(stride),
            padding if isinstance(padding, str) else self._sizes(padding),
            self._sizes(dilation),
            groups,
            padding_mode,
        )
        area = math.prod(self.geometry.kernel_size)
        m, n = weight.shape
        if n % area or m % groups:
            raise ShapeError(
                "a convolution's parameterization has shape (out, in / groups * prod(kernel)); got "
                f"{(m, n)} for a kernel of {area} points and groups={groups}"
            )
        self.out_channels: int
        self.in_channels: int
        self.out_channels, self.in_channels = m, n // area * groups
        self.weight: Parameterization = _started(weight, 1 / (3 * n), start, generator)
        self.bias: nn.Parameter | None = _zero_bias(weight) if bias else None

    def _sizes(self, value: int | Sequence[int]) -> tuple[int, ...]:
        sizes = (value,) * self.dimensions if isinstance(value, int) else tuple(value)
        if len(sizes) != self.dimensions:
            raise ShapeError(f"expected {self.dimensions} sizes, one for each axis; got {sizes}")
        return sizes

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x, shape (batch, in_channels, ...) or (in_channels, ...)."""
        y = convolution(self.weight(), x, self.geometry).to(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias.to(x.dtype).reshape(-1, *(1,) * self.dimensions)


class LowRankConv1d(_LowRankConv):
    """A 1-D convolution whose weight is a parameterization.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> LowRankConv1d(Factored((8, 12), rank=2), 3)(torch.ones(1, 4, 10)).shape
    torch.Size([1, 8, 8])
    """

    dimensions = 1


class LowRankConv2d(_LowRankConv):
    """A 2-D convolution whose weight is a parameterization.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> LowRankConv2d(Factored((8, 36), rank=2), 3, padding="same")(torch.ones(1, 4, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    dimensions = 2


class LowRankConv3d(_LowRankConv):
    """A 3-D convolution whose weight is a parameterization.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> LowRankConv3d(Factored((8, 32), rank=2), 2)(torch.ones(4, 5, 5, 5)).shape
    torch.Size([8, 4, 4, 4])
    """

    dimensions = 3


def _started(
    weight: Parameterization, variance: float, start: Start, generator: torch.Generator | None
) -> Parameterization:
    if start not in get_args(Start):
        raise OptionError(f"start must be one of {get_args(Start)}; got {start!r}")
    return start_at_random_(weight, variance, generator) if start == "random" else weight


def _zero_bias(weight: Parameterization) -> nn.Parameter:
    like = next((p for p in weight.parameters()), torch.empty(0))
    return nn.Parameter(torch.zeros(weight.shape[0], dtype=like.dtype, device=like.device))
