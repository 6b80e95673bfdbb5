"""How each type of layer exposes the weights that an adapter may add to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_opt.errors import OptionError
from lowrank_opt.nn.basis import products, storage
from lowrank_opt.nn.basis.originals import original_type as original_type
from lowrank_opt.nn.basis.originals import type_name as type_name
from lowrank_opt.operator import LowRankOperator

# The attribute by which a class of layers says itself how it is adapted.
OWN_KIND = "lowrank_kind"

OutputUpdate = Callable[[nn.Module, LowRankOperator, Tensor, Tensor], Tensor]
OutputRescaling = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
Side: TypeAlias = Literal["rows", "columns"]


@dataclass(frozen=True)
class LayerKind:
    r"""How a type of layer is adapted; a class of your own has one as its `lowrank_kind`.

    It counts for subclasses too. For a class that is not yours, make a subclass that has it.

    Parameters
    ----------
    weights : function of a module
        Returns the names of its own parameters that an adapter takes by default.
    update : function of (layer, operator, input, output), optional
        Returns what :math:`\Delta W` adds to the layer's output, from the factors. Without it the
        layer is called with the dense :math:`W_0 + \Delta W` in place of its weight.
    view : {"flatten", "stack"}
        Whether a weight of more than two axes is one matrix ``weight.flatten(1)``, or a stack of
        matrices over its leading axes, each with a parameterization of its own.
    companions : tuple of str
        Submodules that are adapted with the layer.
    linear : bool
        Whether ``targets="all-linear"`` takes it.
    refuse : function of a module, optional
        Returns why this one cannot be adapted, or None.
    outputs : {"rows", "columns"}, optional
        Where in a matrix of the weight the outputs are, whose lengths ``magnitude=True`` trains;
        None if they are on neither side.
    rescale : function of (layer, lengths, input, output), optional
        Returns what :math:`\mathrm{diag}(\text{lengths}) W_0` adds to the layer's output, from
        that output. Without it the layer is called with the dense weight where it has magnitudes.

    Examples
    --------
    >>> import torch
    >>> class Transposed(nn.Module):
    ...     lowrank_kind = LayerKind(
    ...         lambda layer: ("table",), lambda layer, op, x, y: op.mT.linear(x)
    ...     )
    ...
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.table = nn.Parameter(torch.randn(4, 6))
    ...
    ...     def forward(self, x):
    ...         return x @ self.table
    >>> kind_of(Transposed()).weights(Transposed())
    ('table',)
    """

    weights: Callable[[nn.Module], tuple[str, ...]]
    update: OutputUpdate | None = None
    view: Literal["flatten", "stack"] = "flatten"
    companions: tuple[str, ...] = ()
    linear: bool = False
    refuse: Callable[[nn.Module], str | None] | None = None
    outputs: Side | None = "rows"
    rescale: OutputRescaling | None = None


def _weight(module: nn.Module) -> tuple[str, ...]:
    return ("weight",)


def _attention_weights(module: nn.Module) -> tuple[str, ...]:
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    own = dict(module.named_parameters(recurse=False))
    return tuple(name for name in names if name in own)


def _recurrent_weights(module: nn.Module) -> tuple[str, ...]:
    return tuple(n for n, _ in module.named_parameters(recurse=False) if n.startswith("weight_"))


def _matrices(module: nn.Module) -> tuple[str, ...]:
    return tuple(n for n, p in module.named_parameters(recurse=False) if is_lazy(p) or p.ndim > 1)


def linear_update(layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    """Return ``x W^T``, of layers that compute this and nothing else of x."""
    return products.linear(op, x)


def _linear_transposed(layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    return products.linear(op.mT, x)


def sum_with_update(
    kind: LayerKind, layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor
) -> Tensor:
    """Return the output y of a layer plus what a low-rank change of its weight adds to it."""
    if kind.update is linear_update:
        return products.plus_linear(op, x, y)
    if kind.update is _linear_transposed:
        return products.plus_linear(op.mT, x, y)
    assert kind.update is not None, "others are called with dense weights"
    update = kind.update(layer, op, x, y)
    return y + (update if update.dtype is y.dtype else update.to(y.dtype))


def _embedding(layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(layer, nn.Embedding)
    return products.embedding(op, x, layer.padding_idx)


def _conv(layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return products.convolution(op, x, products.ConvGeometry.of(layer))


def _conv_transposed(layer: nn.Module, op: LowRankOperator, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    geometry = products.ConvGeometry.of(layer)
    return products.transposed_convolution(op, x, geometry, tuple(y.shape[-geometry.dimensions :]))


def _rescale(layer: nn.Module, lengths: Tensor, x: Tensor, y: Tensor) -> Tensor:
    bias = getattr(layer, "bias", None)
    return (y if bias is None else y - bias) * lengths.to(y.dtype)


def _rescale_embedding(layer: nn.Module, lengths: Tensor, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(layer, nn.Embedding)
    rows = y * lengths.to(y.dtype)
    padding = layer.padding_idx
    return rows if padding is None else rows.where((x != padding).unsqueeze(-1), rows.detach())


def _rescale_channels(layer: nn.Module, lengths: Tensor, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ones = (1,) * len(layer.kernel_size)
    bias = None if layer.bias is None else layer.bias.reshape(-1, *ones)
    return (y if bias is None else y - bias) * lengths.to(y.dtype).reshape(-1, *ones)


def _refuse_embedding(layer: nn.Module) -> str | None:
    assert isinstance(layer, nn.Embedding)
    if layer.max_norm is not None:
        return "max_norm rewrites the weight in its forward"
    return "scale_grad_by_freq has no factored form" if layer.scale_grad_by_freq else None


_DENSE = LayerKind(_matrices, view="stack")
_CODED = LayerKind(_weight, linear_update, linear=True)
_RECURRENT = LayerKind(_recurrent_weights)
_CONVOLUTION = LayerKind(_weight, _conv, rescale=_rescale_channels)
_TRANSPOSED = LayerKind(_weight, _conv_transposed, outputs=None)

# By name: the package of a type need not be imported to know it.
_FOREIGN: Mapping[str, LayerKind] = {
    "torch.nn.modules.linear.Linear": LayerKind(
        _weight, linear_update, linear=True, rescale=_rescale
    ),
    "transformers.pytorch_utils.Conv1D": LayerKind(
        _weight, _linear_transposed, linear=True, outputs="columns", rescale=_rescale
    ),
    "torch.nn.modules.sparse.Embedding": LayerKind(
        _weight,
        _embedding,
        refuse=_refuse_embedding,
        outputs="columns",
        rescale=_rescale_embedding,
    ),
    **{f"torch.nn.modules.conv.Conv{d}d": _CONVOLUTION for d in (1, 2, 3)},
    **{f"torch.nn.modules.conv.ConvTranspose{d}d": _TRANSPOSED for d in (1, 2, 3)},
    "torch.nn.modules.activation.MultiheadAttention": LayerKind(
        _attention_weights, companions=("out_proj",), linear=True
    ),
    "torch.nn.modules.rnn.RNNBase": _RECURRENT,
    "torch.nn.modules.rnn.RNNCellBase": _RECURRENT,
}


def known_kind(
    module: nn.Module | type[nn.Module], *, coded: bool | None = None
) -> LayerKind | None:
    """Return the kind of the nearest class of a module that has one, or None.

    A subclass with a `forward` of its own may do anything with its weight: it is called with dense
    weights, unless it has a kind itself. Where only its forward knows the weight, in a code, it is
    a linear layer, whoever wrote it, and its update is added to what it returns.

    Parameters
    ----------
    module : nn.Module, or a class of modules
    coded : bool, optional
        Whether that is so; as `storage.is_coded` says by default.

    Raises
    ------
    OptionError
        If what a class has as `lowrank_kind` is no LayerKind.
    """
    own = original_type(module)
    if coded is None:
        coded = isinstance(module, nn.Module) and storage.is_coded(module, "weight")
    for cls in own.__mro__:
        kind = cls.__dict__.get(OWN_KIND) or _FOREIGN.get(type_name(cls))
        if kind is None:
            continue
        if not isinstance(kind, LayerKind):
            raise OptionError(
                f"{type_name(cls)}.{OWN_KIND} must be a LayerKind; got {kind!r}: make one"
            )
        overridden = getattr(own, "forward", None) is not getattr(cls, "forward", None)
        by_itself = overridden and not coded
        return replace(kind, update=None, rescale=None) if by_itself and kind.update else kind
    return _CODED if coded else None


def kind_of(module: nn.Module | type[nn.Module], *, coded: bool | None = None) -> LayerKind:
    """Return the known kind; any other module is called with dense weights."""
    return known_kind(module, coded=coded) or _DENSE


def matrix_shapes(weight: Tensor, kind: LayerKind) -> list[tuple[int, int]]:
    """Return the shapes of the matrices that a weight of this kind of layer consists of."""
    shape = tuple(weight.shape)
    if kind.view == "flatten" or len(shape) == 2:
        return [(shape[0], prod(shape[1:]))]
    return [(shape[-2], shape[-1])] * prod(shape[:-2])
