"""How PEFT keeps the factors of each type of layer, and which layers it treats differently."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor, nn

from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    owners,
)
from lowrank_opt.nn.basis.kinds import kind_of, original_type, type_name
from lowrank_opt.operator import LowRankOperator

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = (nn.Linear, nn.Embedding, *_CONVOLUTIONS)
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"


class Sharing:
    """Which weights several layers have, and which layers stand in several places."""

    def __init__(self, everywhere: Sequence[LayerSlot]) -> None:
        self._owners = owners(everywhere)

    def others(self, slot: WeightSlot) -> list[str]:
        """Return the names of all other weights that are this one."""
        every = self._owners[id(slot.parameter)]
        own = (slot.layer.module, slot.weight)
        return [x.name for x in every if (x.layer.module, x.weight) != own]


def obstacle(slot: WeightSlot) -> str | None:
    """Return why PEFT would compute something else with an update of this weight, or None."""
    module = slot.layer.module
    if any(isinstance(holder, nn.MultiheadAttention) for holder, _ in slot.layer.holders):
        return "PEFT's wrapper of an attention's projection is never called"
    if isinstance(module, nn.MultiheadAttention):
        return "PEFT computes W + 2 dW for the output of nn.MultiheadAttention"
    if len(slot.layer.holders) > 1:
        return "it stands in several places, and PEFT replaces one of them"
    reader = next((h for h, key in slot.layer.holders if reads_weight(h, key, slot.weight)), None)
    if reader is not None:
        return f"{original_type(reader).__name__} reads its weight, where PEFT has the base's"
    if type_name(original_type(module)) == _TRANSPOSED:
        return None
    plain = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    if plain is None or slot.weight != "weight" or kind_of(module).view != "flatten":
        return f"PEFT's LoRA has no {original_type(module).__name__}.{slot.weight}"
    if original_type(module).forward is not plain.forward:
        return f"{original_type(module).__name__} has a forward of its own"
    return _obstacle_of_convolution(module) if isinstance(module, _CONVOLUTIONS) else None


def _obstacle_of_convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str | None:
    if module.groups > 1:
        return "PEFT lets every group see all channels"
    if any(d > 1 for d in module.dilation):
        return "PEFT's factors are not dilated"
    if module.padding_mode != "zeros":
        return f"PEFT pads with zeros, and the layer by {module.padding_mode!r}"
    return None


def reads_weight(holder: nn.Module, key: str, weight: str) -> bool:
    """Whether the code of a module reads the weight of a part of it, instead of calling the part.

    As the fast paths of torch's transformer layers do, and mixers of state space models.
    """
    harmless = r"(?!\.(?:dtype|device|shape|ndim|size|requires_grad|data_ptr)\b)"
    pattern = rf"\.{re.escape(key)}\.{re.escape(weight)}\b{harmless}"
    return re.search(pattern, _called_source(original_type(holder))) is not None


@functools.cache
def _called_source(kind: type[nn.Module]) -> str:
    """Return the code of the methods of a class that a call may reach, inherited ones too.

    Where weights are tied or set, they are read once, before there are adapters.
    """
    found: dict[str, str] = {}
    for cls in kind.__mro__:
        for name, method in vars(cls).items() if cls not in (nn.Module, object) else ():
            code = getattr(method, "__func__", getattr(method, "fget", method))
            once = any(word in name for word in ("init", "reset", "tie"))
            if name not in found and inspect.isfunction(code) and not once:
                with suppress(OSError, TypeError):
                    found[name] = inspect.getsource(code)
    return "\n".join(found.values())


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer keeps its weight as in x out: ``fan_in_fan_out`` in PEFT."""
    return type_name(original_type(module)) == _TRANSPOSED


def is_embedding(module: nn.Module) -> bool:
    """Whether a layer's factors have the names of an embedding's."""
    return isinstance(module, nn.Embedding)


def in_model(module: nn.Module, op: LowRankOperator) -> LowRankOperator:
    """Return an update as PEFT writes it in the orientation of the layer's weight, or back."""
    return op.mT if is_transposed(module) else op


def to_tensors(module: nn.Module, op: LowRankOperator) -> dict[str, Tensor]:
    """Return the tensors that PEFT has of a layer, by the ends of their names.

    Parameters
    ----------
    module : nn.Module
        The layer; gives the kernel's shape.
    op : LowRankOperator
        In the orientation of the weight. Its scale is left out.
    """
    left, _, right = in_model(module, op)
    if is_embedding(module):
        return {"lora_embedding_A": left.mT, "lora_embedding_B": right}
    A, B = right.mT, left
    if isinstance(module, _CONVOLUTIONS):
        A = A.reshape(op.rank, -1, *module.kernel_size)
        B = B.reshape(*B.shape, *(1,) * len(module.kernel_size))
    return {"lora_A.weight": A, "lora_B.weight": B}
