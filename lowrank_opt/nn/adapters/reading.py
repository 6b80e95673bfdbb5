"""What a reader gets for a weight that is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lowrank_opt.nn.basis.errors import AdapterStateError

_FACTS = (
    "dtype", "device", "shape", "ndim", "layout", "is_cuda", "requires_grad", "is_meta",
    "is_sparse", "is_quantized", "names",
)  # fmt: skip
_QUESTIONS = ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "element_size")
_ALLOWED = {getattr(Tensor, name).__get__ for name in _FACTS if hasattr(Tensor, name)} | {
    getattr(Tensor, name) for name in _QUESTIONS
}


class RoutedWeight(Tensor):
    """A weight that is another one for each sample: it has a dtype and a shape, and no numbers.

    Modules may look at the dtype of a layer before they call it; what computes with its weight
    must be refused.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func not in _ALLOWED:
            raise AdapterStateError(
                "per_sample needs layers that are called; got a module that computes with the "
                "weight of an adapted layer, where each sample has another: run the model once "
                "for each adapter"
            )
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **(kwargs or {}))


def without_numbers(weight: Tensor) -> Tensor:
    """Return the facts of a weight that is another one for each sample."""
    return weight.detach().as_subclass(RoutedWeight)


def standing_for(total: Tensor, base: Tensor) -> Tensor:
    """Return an effective weight that passes for a parameter, and knows which one it is of.

    So libraries that look parameters up by name, or tie weights once more, find what they expect.
    """
    total._is_param = True  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    total.lowrank_base = base  # pyright: ignore[reportAttributeAccessIssue]
    return total


def is_of(value: object, base: Tensor | None) -> bool:
    """Whether a value is a parameter itself, or stands for it."""
    return base is not None and (value is base or getattr(value, "lowrank_base", None) is base)
