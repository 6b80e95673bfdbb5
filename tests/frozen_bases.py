"""Linear layers whose weight is not a plain parameter, without any other package."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


def code(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 numbers and the scales of rows."""
    scale = weight.detach().abs().amax(1, keepdim=True) / 127
    return (weight.detach() / scale).round().to(torch.int8), scale


class CodedLinear(nn.Module):
    """Int8 numbers in a buffer, which its own forward decodes; no weight of any kind."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        numbers, scale = code(layer.weight)
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.numbers * self.scale.to(x.dtype), self.bias)


class CodedWeight(nn.Linear):
    """The same under the names of torch: the weight is a parameter of integers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
        numbers, scale = code(layer.weight)
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale.to(x.dtype), self.bias)


class Int8Tensor(Tensor):
    """A tensor that looks like its floats and holds integers, as quantised ones of others do."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> "Int8Tensor":
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def dequantize(self) -> Tensor:
        return self.numbers * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.dequantize(), *bias, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].numbers.clone(), args[0].scale.clone())
        raise NotImplementedError(f"{func} of a quantised tensor")


def _subclassed(layer: nn.Linear) -> nn.Module:
    layer.weight = nn.Parameter(Int8Tensor(*code(layer.weight)), requires_grad=False)
    return layer


def _in_float8(layer: nn.Linear) -> nn.Module:
    made = Float8Linear(layer)
    numbers = (layer.weight.detach() / made.scale).to(torch.float8_e4m3fn)
    made.weight = nn.Parameter(numbers, requires_grad=False)
    return made


class Float8Linear(CodedWeight):
    """Numbers of eight bits that pass for floats."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _parametrized(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", _Doubled())


# What holds few bits, and is merged only if that is asked for.
NARROW: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "buffer of int8": CodedLinear,
    "parameter of int8": CodedWeight,
    "parameter of float8": _in_float8,
    "tensor of its own class": _subclassed,
}
COMPUTED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "parametrized": _parametrized,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm by a hook": nn.utils.weight_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}
STORAGES = NARROW | COMPUTED
