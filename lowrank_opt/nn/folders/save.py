"""Write an adapter, and all else in which the model differs from its base, into a folder."""

from __future__ import annotations

import math
from collections.abc import Collection
from os import PathLike

import torch
from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.present import (
    adapter_names,
    check_known,
)
from lowrank_opt.nn.adapters.prints import is_changed, print_of
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    every_slot,
    join,
)
from lowrank_opt.nn.adapters.weights import AdaptedWeight, adapted_weights, dropout_of
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.kinds import original_type, type_name
from lowrank_opt.nn.basis.sharded import in_whole
from lowrank_opt.nn.folders import files
from lowrank_opt.nn.folders.described import check_unhooked, described
from lowrank_opt.nn.folders.stored import SETTLED, magnitude_key, norm_of, own_key
from lowrank_opt.nn.surgery.own import differs, own_tensors
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.config import Json, JsonObject


@in_whole
def save_adapter(model: nn.Module, path: str | PathLike[str], *, name: str | None = None) -> None:
    """Write one adapter, and all else that is its own, into a folder.

    The folder gets ``adapter.safetensors`` and ``adapter.json``: the updates, the modules that
    were trained with them, the buffers that differ from the base model's, and the parameters of the
    model that differ from what they were when it was adapted, because the caller trained them. It
    does not matter which parameters are frozen now or which adapter is active.

    Parameters
    ----------
    model : nn.Module
        Adapted; merged or not. Wrappers such as that of ``torch.compile`` or
        DistributedDataParallel leave the names as they are.
    path : path
        A folder; made if it does not exist.
    name : str, optional
        Of the adapter; may be left out if there is only one.

    Raises
    ------
    AdapterStateError
        If there is no such adapter, or several and no name.
    TargetError
        If a number is NaN or infinite, or a hook changes what an update computes.
    DataError
        If the folder cannot be written.
    """
    name = only_name(model) if name is None else name
    check_known(model, [name])
    entries: list[Json] = []
    tensors: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for adapted in adapted_weights(model, {name}):
        for member in adapted.updates:
            check_unhooked(member, adapted.name)
        first = seen.setdefault(id(adapted.updates[0]), adapted.name)
        entries.append(_entry(adapted, first))
        if first == adapted.name:
            tensors |= _member_tensors(adapted)
    trained: list[Json] = []
    for places, tensor in own_of(model, name):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        trained.append({"places": [*places], "kind": kind, "norm": norm_of(tensor)})
        tensors[own_key(places[0])] = _finite(tensor, places[0])
    description: JsonObject = {"adapter": name, "sites": entries, "trained": trained}
    files.write(path, description | {"dropout": dropout_of(model, name)}, tensors)


def own_of(model: nn.Module, name: str) -> list[tuple[list[str], Tensor]]:
    """Return what an adapter has of its own, by all names: parameters, and buffers that differ.

    Parameters of the model that the caller has let be trained, frozen again or not, count too.
    """
    found: dict[int, tuple[list[str], Tensor]] = {}
    for slot in every_slot(model):
        for key, tensor in own_or_trained(slot, name).items():
            found.setdefault(id(tensor), ([], tensor))[0].append(join(slot.name, key))
    return list(found.values())


def own_or_trained(slot: LayerSlot, name: str) -> dict[str, Tensor]:
    """Return the tensors of one module in which an adapter differs from the base model."""
    part = None if slot.store is None else slot.store.part(name)
    own = {} if part is None else {key: part.own.get(key) for key in part.own.homes}
    base_own = {key: x for key, x in own_tensors(slot).items() if key not in own}
    if slot.holds_sealed:
        buffers = slot.module._buffers  # pyright: ignore[reportPrivateUsage]
        base_own = {key: x for key, x in base_own.items() if key not in buffers}
    found = {key: x for key, x in base_own.items() if is_changed(slot.module, key, x)}
    for key, tensor in own.items():
        base = stored(slot.module, key)
        assert tensor is not None, "own tensors exist"
        if isinstance(tensor, nn.Parameter) or base is None or differs(tensor, base):
            found[key] = tensor
    return found


def only_name(model: nn.Module) -> str:
    """Return the name of the model's only adapter, or raise AdapterStateError."""
    names = adapter_names(model)
    if len(names) != 1:
        raise AdapterStateError(f"name must be given for several adapters; the model has {names}")
    return names[0]


def _entry(adapted: AdaptedWeight, tied_to: str) -> JsonObject:
    recipes: list[Json] = [described(member) for member in adapted.updates]
    norms: list[Json] = [_frobenius(member, adapted.name) for member in adapted.updates]
    return {
        "site": adapted.name,
        "layer": type_name(original_type(adapted.slot.layer.module)),
        "shape": [*adapted.slot.parameter.shape],
        "tied_to": tied_to,
        "members": recipes,
        "base": [_base_of(adapted, i) for i in range(len(recipes))],
        "sets": [type(member.feasible_set).__name__ for member in adapted.updates],
        "frobenius_norms": norms,
        "settled": [fixed.rank for fixed in adapted.settled],
        "magnitude": None if adapted.magnitude is None else adapted.magnitude.side,
    }


def _frobenius(member: Parameterization, name: str) -> float:
    norm = float(member.factors().detach().schatten_norm(2))
    if not math.isfinite(norm):
        raise _not_finite(f"{name}, {member!r}")
    return norm


def _finite(x: Tensor, name: str) -> Tensor:
    # A mask may hold infinity; a parameter may not.
    wrong = torch.isnan(x) if not isinstance(x, nn.Parameter) else ~torch.isfinite(x)
    if not x.is_meta and bool(wrong.any()):
        raise _not_finite(name)
    return x


def _not_finite(name: str) -> TargetError:
    return TargetError(
        f"an adapter to save must be finite; got NaN or infinity in {name}: train it again"
    )


def _base_of(adapted: AdaptedWeight, i: int) -> JsonObject:
    """Return which tensors of a parameterization are the base weight, and prints of that."""
    W0 = adapted.base_matrices()[i]
    found: JsonObject = {}
    for key, x in adapted.updates[i].named_buffers():
        if x.shape == W0.shape and not differs(x, W0.to(x.dtype)):
            found[key] = {"dtype": str(x.dtype), "print": [*print_of(x)]}
    return found


def _member_tensors(adapted: AdaptedWeight) -> dict[str, Tensor]:
    """Return what is written of the parameterizations of a weight: not the base weight."""
    return (
        {
            f"{adapted.name}/{i}/{key}": x
            for i, member in enumerate(adapted.updates)
            for key, x in _without(member.state_dict(), _base_of(adapted, i)).items()
        }
        | {
            f"{adapted.name}/{i}/{SETTLED}{key}": x
            for i, fixed in enumerate(adapted.settled)
            for key, x in fixed.state_dict().items()
        }
        | _magnitude(adapted)
    )


def _magnitude(adapted: AdaptedWeight) -> dict[str, Tensor]:
    if adapted.magnitude is None:
        return {}
    key = magnitude_key(adapted.name)
    return {key: _finite(adapted.magnitude.lengths, key)}


def _without(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {key: x for key, x in state.items() if key not in names}
