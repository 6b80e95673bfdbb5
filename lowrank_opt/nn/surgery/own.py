"""What an adapter has of its own besides updates: trained modules, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    join,
    owners,
)
from lowrank_opt.nn.basis.cut import laid_out_as
from lowrank_opt.nn.surgery.targets import matches
from lowrank_opt.parameterizations import Parameterization


@dataclass(frozen=True)
class Own:
    """A tensor of an adapter that takes the place of one of the model's, wherever that is tied.

    Attributes
    ----------
    places : sequence of (LayerSlot, str)
        The modules and the names that the tensor has there.
    tensor : Tensor
        A parameter, or a buffer.
    """

    places: Sequence[tuple[LayerSlot, str]]
    tensor: Tensor

    @property
    def name(self) -> str:
        """The dotted name, of the first place."""
        slot, key = self.places[0]
        return join(slot.name, key)


def own_modules(patterns: str | Sequence[str], everywhere: Sequence[LayerSlot]) -> list[nn.Module]:
    """Return the modules that the patterns name, or raise OptionError if one matches nothing."""
    several = (patterns,) if isinstance(patterns, str) else patterns
    named = [slot for slot in everywhere if slot.name]
    for pattern in several:
        if not any(matches(pattern, slot.name) for slot in named):
            raise OptionError(
                f"modules_to_train must match something; got {pattern!r}: the model has "
                f"{', '.join(slot.name for slot in named)[:500]}"
            )
    return [slot.module for slot in named if any(matches(x, slot.name) for x in several)]


def check_apart(
    modules: Sequence[nn.Module], everywhere: Sequence[LayerSlot], adapted: Sequence[WeightSlot]
) -> None:
    """Raise OptionError if a weight is in one of the modules, and adapted too."""
    inside = {id(module) for whole in modules for module in whole.modules()}
    trained = {
        id(p)
        for slot in everywhere
        if id(slot.module) in inside
        for p in _own(slot.module, buffers=False).values()
    }
    both = [slot.name for slot in adapted if {id(p) for p in slot.held} & trained]
    if both:
        raise OptionError(
            f"a weight is adapted or trained, not both; got {both} in modules_to_train: "
            "exclude them or train less"
        )


def own_parameters(modules: Sequence[nn.Module], everywhere: Sequence[LayerSlot]) -> list[Own]:
    """Return copies of the parameters of some modules; what is tied shares a copy."""
    inside = {id(module) for whole in modules for module in whole.modules()}
    every = owners(everywhere)
    made: dict[int, Own] = {}
    for slot in everywhere:
        for p in _own(slot.module, buffers=False).values() if id(slot.module) in inside else ():
            if id(p) not in made:
                places = [(found.layer, found.weight) for found in every[id(p)]]
                made[id(p)] = Own(places, trainable_copy(p))
    return list(made.values())


def own_buffers(
    everywhere: Sequence[LayerSlot], values: Mapping[str, Tensor] | None = None
) -> list[Own]:
    """Return copies of the buffers that a model writes to its state dict, or other values of them.

    Buffers on the meta device are left to the model, as are those of parameterizations and of
    weights that are not plain, which are constant.
    """
    constant = {
        id(module)
        for slot in everywhere
        if isinstance(slot.module, Parameterization)
        for module in slot.module.modules()
    }
    found: list[Own] = []
    for slot in everywhere:
        if id(slot.module) in constant or slot.holds_sealed:
            continue
        for key, buffer in _own(slot.module, buffers=True).items():
            value = (values or {}).get(join(slot.name, key))
            if value is None and buffer.is_meta:
                continue
            copied = buffer if value is None else value.to(buffer.dtype)
            device = "cpu" if buffer.is_meta else buffer.device
            copied = laid_out_as(copied.detach().to(device, copy=True), buffer)
            found.append(Own([(slot, key)], copied))
    return found


def trainable_copy(x: Tensor, value: Tensor | None = None) -> nn.Parameter:
    """Return a copy of a parameter, or of other values in its dtype and on its device."""
    device = "cpu" if x.is_meta and value is not None else x.device
    source = x if value is None else value
    copied = source.detach().to(device=device, dtype=x.dtype, copy=True)
    trained = x.is_floating_point() or x.is_complex()
    return nn.Parameter(laid_out_as(copied, x), requires_grad=trained)


def own_tensors(slot: LayerSlot) -> dict[str, Tensor]:
    """Return parameters and persistent buffers that stand in a module itself."""
    return {**_own(slot.module, buffers=False), **_own(slot.module, buffers=True)}


def _own(module: nn.Module, *, buffers: bool) -> dict[str, Tensor]:
    kept = module._buffers if buffers else module._parameters  # pyright: ignore[reportPrivateUsage]
    skipped = module._non_persistent_buffers_set if buffers else ()  # pyright: ignore[reportPrivateUsage]
    found = {key: stored(module, key) for key in kept if key not in skipped}
    return {key: x for key, x in found.items() if x is not None}


def differs(x: Tensor, base: Tensor) -> bool:
    """Whether two tensors differ in a bit; meta tensors differ from all others."""
    if x.is_meta or base.is_meta or x.shape != base.shape or x.dtype != base.dtype:
        return True
    return not torch.equal(_bits(x), _bits(base))


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().flatten().view(torch.uint8).cpu()
