"""The transition that adds an adapter, and the flags that follow from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from lowrank_opt.nn.adapters.adapted import adapted_modules, attach
from lowrank_opt.nn.adapters.change import Magnitude
from lowrank_opt.nn.adapters.part import Part, stored
from lowrank_opt.nn.adapters.present import (
    check_not_merged,
    check_not_routed,
    record_of,
)
from lowrank_opt.nn.adapters.prints import note_base
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.adapters.slots import (
    WeightSlot,
    every_slot,
)
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.sharded import check_whole
from lowrank_opt.nn.surgery.own import Own
from lowrank_opt.nn.surgery.passes import watch
from lowrank_opt.parameterizations import Parameterization

Updates: TypeAlias = list[tuple[WeightSlot, list[Parameterization]]]


@dataclass(frozen=True)
class Plan:
    """An adapter, whole, before any of it is in the model.

    Attributes
    ----------
    name : str
    updates : list of (WeightSlot, list of Parameterization)
        Weights that are tied have one list.
    own : sequence of Own
    magnitudes : mapping from names of weights to Magnitude
        Weights that are tied have one.
    dropout : float
    """

    name: str
    updates: Updates
    own: Sequence[Own] = field(default=())
    magnitudes: Mapping[str, Magnitude] = field(default_factory=dict[str, Magnitude])
    dropout: float = 0.0


def install(model: nn.Module, plan: Plan) -> nn.Module:
    """Put a planned adapter into the model and make it the active one; cannot fail."""
    adapted = any(True for _ in adapted_modules(model))
    note_base(model)
    record = record_of(model) if adapted else Record()
    bases = [
        p
        for slot in every_slot(model)
        for p in slot.module._parameters.values()  # pyright: ignore[reportPrivateUsage]
        if p is not None
    ]
    replaced = [p for slot, _ in plan.updates for p in slot.held]
    replaced += [
        p
        for own in plan.own
        for slot, key in own.places
        if isinstance(p := stored(slot.module, key), nn.Parameter)
    ]
    for parameter in replaced if adapted else bases:
        # Lazy ones, which are no tensors yet, take it too.
        parameter.requires_grad = False
    for module, part in _parts(plan):
        part.train(module.training)
        part.dropout = plan.dropout
        attach(module, record).add(plan.name, part)
    state = record.state
    record.set(names=(*state.names, plan.name), active=((plan.name, 1.0),), lead=None)
    follow(model)
    watch(model)
    return model


def _parts(plan: Plan) -> list[tuple[nn.Module, Part]]:
    parts: dict[int, tuple[nn.Module, Part]] = {}
    homes: dict[int, tuple[Part, str]] = {}
    for slot, members in plan.updates:
        _, part = parts.setdefault(id(slot.layer.module), (slot.layer.module, Part()))
        part.add(slot.weight, members, linked=id(members[0]) in homes)
        home = homes.setdefault(id(members[0]), (part, slot.weight))
        magnitude = plan.magnitudes.get(slot.name)
        if magnitude is not None:
            part.magnify(slot.weight, magnitude, *home)
    for own in plan.own:
        (first, key), *others = own.places
        _, home = parts.setdefault(id(first.module), (first.module, Part()))
        home.own.add(key, own.tensor)
        for slot, other in others:
            _, part = parts.setdefault(id(slot.module), (slot.module, Part()))
            part.own.link(other, home.own, key)
    return list(parts.values())


def follow(model: nn.Module) -> None:
    """Let the parameters of active adapters be trained, and no others.

    What the caller has frozen of an adapter, while the rest of it was trained, stays frozen.
    """
    found: dict[str, list[tuple[Part, bool]]] = {}
    for _, store in adapted_modules(model):
        active = {name for name, _ in store.record.state.active}
        for name, part in store.parts().items():
            found.setdefault(name, []).append((part, name in active))
    for parts in found.values():
        trained = any(p.requires_grad for part, _ in parts for p in part.parameters())
        for part, _ in parts if trained else ():
            part.note_fixed()
        for part, active in parts:
            part.train_only_if(active)


def check_new_name(model: nn.Module, name: str) -> None:
    """Raise AdapterStateError unless an adapter of that name can be added."""
    check_whole(model, "adding an adapter")
    check_not_merged(model, "adding an adapter")
    check_not_routed(model, "adding an adapter")
    if not name or "." in name or name.endswith("_"):
        raise AdapterStateError(f"an adapter's name must be a plain word; got {name!r}: rename it")
    stores = [store for _, store in adapted_modules(model)]
    if stores and name in record_of(model).state.names:
        raise AdapterStateError(
            f"an adapter's name must be new; the model has {name!r}: pass name=... or unload(model)"
        )
