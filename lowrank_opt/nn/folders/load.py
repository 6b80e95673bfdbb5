"""Load an adapter folder into a model, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from lowrank_opt.errors import DataError, ShapeError, TargetError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.change import Magnitude
from lowrank_opt.nn.adapters.part import Part, stored
from lowrank_opt.nn.adapters.present import (
    check_not_merged,
    check_not_routed,
    record_of,
)
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    every_slot,
    join,
    sealed_weights,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    adapted_weights,
    settle,
    unsettle,
)
from lowrank_opt.nn.basis.cut import in_one_piece, laid_out_as
from lowrank_opt.nn.basis.kinds import kind_of, matrix_shapes
from lowrank_opt.nn.basis.planned import check_can_be_cut
from lowrank_opt.nn.basis.sharded import check_whole, is_sharded
from lowrank_opt.nn.folders.built import build, magnitude_of, settled_of
from lowrank_opt.nn.folders.described import described
from lowrank_opt.nn.folders.stored import (
    Bases,
    Stored,
    StoredOwn,
    StoredWeight,
    check_keys,
    check_same_kind,
    check_same_shape,
    read,
)
from lowrank_opt.nn.surgery.extras import magnitude_of as as_magnitude
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.nn.surgery.own import Own, own_buffers, trainable_copy
from lowrank_opt.operator import LowRankOperator


def load_adapter(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str | None = None,
    make: Make | None = None,
) -> nn.Module:
    """Add the adapter of a folder to a model, or load it into the adapter of that name.

    Strict: every weight of the file must be in the model with the same shape, and every tensor
    must be used. After any error the model is what it was. The tensors go to the devices of the
    base weights; for a base on the meta device they stay on the CPU.

    Parameters
    ----------
    model : nn.Module
        The base model, adapted or not; not merged.
    path : path
        A folder that `save_adapter` wrote.
    name : str, optional
        Another name for the adapter.
    make : function of a shape, optional
        Needed for parameterizations whose class the program does not know, or that do not hold
        the options of their constructor.

    Returns
    -------
    nn.Module
        The model itself.

    Raises
    ------
    DataError
        If the folder is missing, damaged, or does not fit the model: all keys are listed.
    ShapeError, TargetError
        If a weight has another shape, or an adapter of that name is made by another method.
    NotInSetError
        If an update is outside the set that is declared for it.
    AdapterStateError
        If the model is merged, or inside a `per_sample` block.
    """
    found = read(path)
    name = found.name if name is None else name
    check_whole(model, "load_adapter")
    check_not_merged(model, "load_adapter")
    check_not_routed(model, "load_adapter")
    everywhere = every_slot(model)
    slots = {
        slot.name: slot for layer in everywhere if not layer.opaque for slot in _weights(layer)
    }
    check_keys("sites", set(found.weights), set(found.weights) & set(slots))
    for key, weight in found.weights.items():
        _check_weight(weight, slots[key])
    targets = _own_targets(found.own, everywhere)
    made = build(found, make, path, _bases(slots))
    updates: Updates = [(slots[k], made[w.tied_to]) for k, w in found.weights.items()]
    for slot, members in updates:
        if is_sharded(slot.parameter):
            check_can_be_cut(slot.name, members, slot.parameter, found.dropout)
    known = record_of(model).state.names if any(adapted_modules(model)) else ()
    settled = {key: settled_of(found, weight) for key, weight in found.weights.items()}
    magnitudes = _magnitudes(found, slots)
    if name in known:
        _load_into(model, Plan(name, updates, (), magnitudes, found.dropout), found.own)
        for adapted in adapted_weights(model, {name}, tied=False):
            unsettle(model, adapted)
        _settle(model, name, settled)
        return model
    check_new_name(model, name)
    for slot, members in updates:
        device = slot.parameter.device
        for member in members:
            member.to(device="cpu" if device.type == "meta" else device)
    own = _own(found, targets, everywhere)
    install(model, Plan(name, updates, own, magnitudes, found.dropout))
    _settle(model, name, settled)
    return model


def _magnitudes(found: Stored, slots: Mapping[str, WeightSlot]) -> dict[str, Magnitude]:
    made: dict[str, Magnitude] = {}
    for key, weight in found.weights.items():
        lengths = magnitude_of(found, weight)
        if lengths is not None and weight.magnitude is not None:
            first = made.get(weight.tied_to)
            made[key] = first or as_magnitude(slots[key], weight.magnitude, lengths)
    return made


def _settle(model: nn.Module, name: str, settled: Mapping[str, Sequence[LowRankOperator]]) -> None:
    for adapted in adapted_weights(model, {name}, tied=False):
        if settled[adapted.name]:
            settle(model, adapted, [op.to(device=_device(adapted)) for op in settled[adapted.name]])


def _device(adapted: AdaptedWeight) -> torch.device:
    device = adapted.slot.parameter.device
    return torch.device("cpu") if device.type == "meta" else device


def _bases(slots: Mapping[str, WeightSlot]) -> Bases:
    def matrix(name: str, i: int) -> Tensor:
        slot = slots[name]
        if slot.parameter.is_meta:
            raise TargetError(
                f"an adapter that turns its base weight needs it; {name} is on the meta device: "
                "load the base weights first"
            )
        shapes = slot.shapes
        return in_one_piece(slot.parameter.detach()).reshape(len(shapes), *shapes[0])[i]

    return matrix


def _weights(layer: LayerSlot) -> list[WeightSlot]:
    own = layer.module._parameters.items()  # pyright: ignore[reportPrivateUsage]
    return [*(WeightSlot(layer, key) for key, p in own if p is not None), *sealed_weights(layer)]


def _check_weight(weight: StoredWeight, slot: WeightSlot) -> None:
    if tuple(slot.parameter.shape) != weight.shape:
        raise ShapeError(
            f"the weight {slot.name} must have the shape of the file, {[*weight.shape]}; got "
            f"{[*slot.parameter.shape]}: load the adapter into the model it was trained for"
        )
    shapes = matrix_shapes(slot.parameter, kind_of(slot.layer.module))
    if len(weight.recipes) != len(shapes) or weight.matrix != shapes[0]:
        raise ShapeError(f"{slot.name} must consist of as many matrices as in the file")


def _own_targets(
    own: Sequence[StoredOwn], everywhere: Sequence[LayerSlot]
) -> dict[str, tuple[LayerSlot, str]]:
    """Return the modules and names of own tensors, which must be in the model, alike."""
    places = {
        join(slot.name, key): (slot, key)
        for slot in everywhere
        for kept in (slot.module._parameters, slot.module._buffers)  # pyright: ignore[reportPrivateUsage]
        for key in kept
    }
    wanted = [place for x in own for place in x.places]
    check_keys("trained tensors", wanted, [name for name in wanted if name in places])
    for x in own:
        for place in x.places:
            slot, key = places[place]
            target = stored(slot.module, key)
            # A layer without a bias may get one.
            if target is not None:
                check_same_shape(place, target.shape, x.tensor)
                check_same_kind(place, target, x.tensor)
                _check_alike(place, target, x.parameter)
    return {name: places[name] for name in wanted}


def _check_alike(place: str, target: Tensor, parameter: bool) -> None:
    if isinstance(target, nn.Parameter) is not parameter:
        raise DataError(
            f"trained tensors must be what they are in the model; {place} is a "
            f"{'buffer' if parameter else 'parameter'} there: load it into the model it was "
            "saved from"
        )
    if target.is_meta:
        raise TargetError(
            f"modules that were trained must be real before loading; {place} is on the meta "
            "device: load the base weights first"
        )


def _own(
    found: Stored, targets: Mapping[str, tuple[LayerSlot, str]], everywhere: Sequence[LayerSlot]
) -> list[Own]:
    values = {place: x.tensor for x in found.own if not x.parameter for place in x.places}
    own = own_buffers(everywhere, values)
    for x in found.own:
        if x.parameter:
            places = [targets[place] for place in x.places]
            base = stored(places[0][0].module, places[0][1])
            like = base if base is not None else _beside(places[0][0].module, x.tensor)
            own.append(Own(places, trainable_copy(like, x.tensor)))
    return own


def _beside(module: nn.Module, tensor: Tensor) -> Tensor:
    """Return a tensor that tells the dtype and device of a module's other parameters."""
    own = module._parameters.values()  # pyright: ignore[reportPrivateUsage]
    return next((p for p in own if p is not None), tensor)


@torch.no_grad()
def _load_into(model: nn.Module, plan: Plan, own: Sequence[StoredOwn]) -> None:
    """Copy what was loaded into the adapter of that name, or raise with nothing changed."""
    name, updates = plan.name, plan.updates
    found = adapted_weights(model, {name})
    present = {adapted.name: adapted.updates for adapted in found}
    lengths = {x.name: x.magnitude for x in found if x.magnitude is not None}
    check_keys("sites", {slot.name for slot, _ in updates}, set(present))
    for slot, members in updates:
        for mine, theirs in zip(present[slot.name], members, strict=True):
            if described(mine) != described(theirs):
                raise TargetError(
                    f"the file's adapter must be of the method of {name!r}; {slot.name} has "
                    f"{mine!r} and the file {theirs!r}: load under another name"
                )
    if {k: x.side for k, x in lengths.items()} != {k: x.side for k, x in plan.magnitudes.items()}:
        raise TargetError(
            f"the file's adapter must have magnitudes where {name!r} has; got "
            f"{sorted(plan.magnitudes)} in the file and {sorted(lengths)}: load under another name"
        )
    kept = _kept(model, name)
    parameters = {key for key, (part, _, k) in kept.items() if _is_parameter(part, k)}
    check_keys("trained tensors", {p for x in own if x.parameter for p in x.places}, parameters)
    values = {place: x.tensor for x in own for place in x.places}
    for slot, members in updates:
        for mine, theirs in zip(present[slot.name], members, strict=True):
            mine.load_state_dict(theirs.state_dict())
    for key, magnitude in plan.magnitudes.items():
        lengths[key].lengths.copy_(magnitude.lengths)
    for _, store in adapted_modules(model):
        part = store.part(name)
        if part is not None:
            part.dropout = plan.dropout
    for place, (part, module, key) in kept.items():
        target, base = part.own.get(key), stored(module, key)
        assert target is not None
        value = values.get(place, base)
        if value is not None:
            target.copy_(laid_out_as(value, target))


def _kept(model: nn.Module, name: str) -> dict[str, tuple[Part, nn.Module, str]]:
    return {
        join(slot.name, key): (part, slot.module, key)
        for slot in every_slot(model)
        if slot.store is not None and (part := slot.store.part(name)) is not None
        for key in part.own.homes
    }


def _is_parameter(part: Part, key: str) -> bool:
    return isinstance(part.own.get(key), nn.Parameter)
