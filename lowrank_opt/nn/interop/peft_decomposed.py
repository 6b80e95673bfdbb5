"""Layers whose rows PEFT rescales, put into a model in place of the base's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.slots import WeightSlot
from lowrank_opt.nn.low_rank.decomposed import DecomposedModule
from lowrank_opt.nn.surgery.own import Own


def check_bare(model: nn.Module, slots: Sequence[WeightSlot], method: str) -> None:
    """Raise TargetError unless the weights are there and have no adapters beside them."""
    adapted = any(True for _ in adapted_modules(model))
    for slot in slots:
        if adapted or slot.parameter.is_meta:
            fault = "is on the meta device" if slot.parameter.is_meta else "has adapters"
            raise TargetError(
                f"{method} needs a real weight and no adapters beside it; {slot.layer.name} "
                f"{fault}: load the weights first, and unload(model)"
            )


def install_decomposed(
    model: nn.Module,
    layers: Sequence[tuple[WeightSlot, DecomposedModule]],
    own: Sequence[Own],
) -> nn.Module:
    """Replace layers; all else of the model is frozen. Return the model, or the layer it is."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for slot, layer in layers:
        for holder, key in slot.layer.holders:
            setattr(holder, key, layer)
        layer.decomposed.requires_grad_(True)
    for one in own:
        for slot, key in one.places:
            buffer = not isinstance(one.tensor, nn.Parameter)
            kept = slot.module._buffers if buffer else slot.module._parameters  # pyright: ignore[reportPrivateUsage]
            kept[key] = one.tensor  # pyright: ignore[reportArgumentType]
    return layers[0][1] if not layers[0][0].layer.holders else model
