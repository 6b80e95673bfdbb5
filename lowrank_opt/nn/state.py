"""Save adapters to folders and load them, strictly."""

from __future__ import annotations

import math
from os import PathLike
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from lowrank_opt.errors import (
    DataError,
    LowRankError,
    NotInSetError,
    OptionError,
    ShapeError,
    TargetError,
)
from lowrank_opt.nn import files
from lowrank_opt.nn.errors import AdapterStateError
from lowrank_opt.nn.places import Place, Site, places
from lowrank_opt.nn.radius import Make
from lowrank_opt.nn.sites import type_name
from lowrank_opt.nn.surgery import Plan, adapter_names, check_known, check_new_name, install
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.config import (
    Json,
    JsonObject,
    class_name,
    describe,
    load_tensors,
    rebuild,
)
from lowrank_opt.sets import relative_tolerance

Entry: TypeAlias = dict[str, Json]


def save_adapter(model: nn.Module, path: str | PathLike[str], *, name: str | None = None) -> None:
    """Write one adapter, and what is trained beside it, into a folder.

    The folder gets ``adapter.safetensors`` and ``adapter.json``. Base weights are not written.

    Parameters
    ----------
    model : nn.Module
        Adapted; merged or not.
    path : path
        A folder; made if it does not exist.
    name : str, optional
        Of the adapter; may be left out if there is only one.

    Raises
    ------
    AdapterStateError
        If there is no such adapter, or several and no name.
    DataError
        If the folder cannot be written.
    """
    name = _only_name(model) if name is None else name
    check_known(model, [name])
    entries: list[Json] = []
    tensors: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for place in places(model):
        adapter = None if place.wrapper is None else place.wrapper.adapter(name)
        for weight, members in adapter.items() if adapter is not None else ():
            site = Site(place, weight)
            first = seen.setdefault(id(members[0]), site.name)
            entries.append(_entry(site, members, first))
            if first == site.name:
                tensors |= _member_tensors(site.name, members)
    trained = trained_tensors(model)
    tensors |= {f"trained/{key}": x for key, x in trained.items()}
    files.write(path, {"adapter": name, "sites": entries, "trained": [*trained]}, tensors)


def load_adapter(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    name: str | None = None,
    make: Make | None = None,
) -> nn.Module:
    """Add the adapter of a folder to a model, or load it into the adapter of that name.

    Strict: every site of the file must be in the model with the same shape, and every tensor must
    be used. After any error the model is what it was. The tensors go to the devices of the base
    weights; for a base on the meta device they stay on the CPU.

    Parameters
    ----------
    model : nn.Module
        The base model, adapted or not.
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
        The model; if the model itself is the adapted layer, its wrapper.

    Raises
    ------
    DataError
        If the folder is missing, damaged, or does not fit the model: all keys are listed.
    ShapeError, TargetError
        If a weight has another shape, or an adapter of that name is made by another method.
    NotInSetError
        If an update is outside the set that is declared for it.
    """
    description, tensors = files.read(path)
    try:
        return _load(model, description, tensors, name, make)
    except LowRankError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise DataError(
            f"an adapter must be as save_adapter wrote it; {str(path)!r} is damaged ({error!r}): "
            "save it again"
        ) from error


def _load(
    model: nn.Module,
    description: JsonObject,
    tensors: dict[str, Tensor],
    name: str | None,
    make: Make | None,
) -> nn.Module:
    name = str(description["adapter"]) if name is None else name
    everywhere = places(model)
    sites = {site.name: site for place in everywhere for site in _all_sites(place)}
    entries = {str(e["site"]): e for e in cast("list[Entry]", description["sites"])}
    trained = _trained_targets(model, cast("list[str]", description["trained"]))
    _check_keys("sites", set(entries), set(entries) & set(sites))
    used: set[str] = set(f"trained/{key}" for key in trained)
    made: dict[str, list[Parameterization]] = {}
    for key, entry in entries.items():
        _check_site(entry, sites[key])
        if entry["tied_to"] == key:
            made[key] = build_members(entry, tensors, used, make)
    _check_keys("tensors", set(tensors), used)
    for key, target in trained.items():
        _check_real(key, target)
        _check_same_shape(key, target, tensors[f"trained/{key}"])
    plan: Plan = [(sites[k], made[str(e["tied_to"])]) for k, e in entries.items()]
    model = _place(model, everywhere, plan, name)
    with torch.no_grad():
        for key, target in trained.items():
            target.copy_(tensors[f"trained/{key}"])
            target.requires_grad_(target.requires_grad or isinstance(target, nn.Parameter))
    return model


def _place(model: nn.Module, everywhere: list[Place], plan: Plan, name: str) -> nn.Module:
    """Install the plan, or copy it into the adapter that has the name already."""
    present = {
        Site(place, weight).name: members
        for place in everywhere
        if place.wrapper is not None and (adapter := place.wrapper.adapter(name)) is not None
        for weight, members in adapter.items()
    }
    if not present:
        check_new_name(name, everywhere)
        for site, members in plan:
            device = site.parameter.device
            for member in members:
                member.to(device="cpu" if device.type == "meta" else device)
        return install(model, everywhere, plan, name, [])
    _check_keys("sites", {site.name for site, _ in plan}, set(present))
    for site, members in plan:
        for mine, theirs in zip(present[site.name], members, strict=True):
            if _described(mine) != _described(theirs):
                raise TargetError(
                    f"the file's adapter must be of the method of {name!r}; {site.name} has "
                    f"{mine!r} and the file {theirs!r}: load under another name"
                )
    for site, members in plan:
        for mine, theirs in zip(present[site.name], members, strict=True):
            mine.load_state_dict(theirs.state_dict())
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters that are trained beside the adapters, and buffers of their modules."""
    found: dict[str, Tensor] = {}
    for place in places(model):
        own = dict(place.module.named_parameters(recurse=False))
        keep = {key: p for key, p in own.items() if p.requires_grad}
        if keep:
            keep |= dict(place.module.named_buffers(recurse=False))
        found |= {Site(place, key).name: x for key, x in keep.items()}
    return found


def _only_name(model: nn.Module) -> str:
    names = adapter_names(model)
    if len(names) != 1:
        raise AdapterStateError(f"name must be given for several adapters; the model has {names}")
    return names[0]


def _entry(site: Site, members: list[Parameterization], tied_to: str) -> Entry:
    recipes: list[Json] = [_described(member) for member in members]
    norms: list[Json] = [_frobenius(member) for member in members]
    return {
        "site": site.name,
        "layer": type_name(type(site.place.module)),
        "shape": [*site.parameter.shape],
        "tied_to": tied_to,
        "members": recipes,
        "sets": [type(member.feasible_set).__name__ for member in members],
        "frobenius_norms": norms,
    }


def _frobenius(member: Parameterization) -> float:
    norm = float(member.factors().detach().schatten_norm(2))
    if not math.isfinite(norm):
        raise TargetError(
            f"an adapter to save must be finite; got NaN or infinity in {member!r}: train it again"
        )
    return norm


def _member_tensors(site: str, members: list[Parameterization]) -> dict[str, Tensor]:
    return {
        f"{site}/{i}/{key}": x
        for i, member in enumerate(members)
        for key, x in member.state_dict().items()
    }


def _all_sites(place: Place) -> list[Site]:
    return [Site(place, key) for key, _ in place.module.named_parameters(recurse=False)]


def _check_site(entry: Entry, site: Site) -> None:
    if [*site.parameter.shape] != entry["shape"]:
        raise ShapeError(
            f"the weight {site.name} must have the shape of the file, {entry['shape']}; got "
            f"{[*site.parameter.shape]}: load the adapter into the model it was trained for"
        )
    if len(cast("list[Json]", entry["members"])) != len(site.shapes):
        raise ShapeError(f"{site.name} must consist of as many matrices as in the file")


def build_members(
    entry: Entry, tensors: dict[str, Tensor], used: set[str], make: Make | None
) -> list[Parameterization]:
    """Return the parameterizations of one site, loaded; add their keys to `used`."""
    made: list[Parameterization] = []
    recipes = cast("list[JsonObject]", entry["members"])
    norms = cast("list[float]", entry["frobenius_norms"])
    for i, (recipe, norm) in enumerate(zip(recipes, norms, strict=True)):
        prefix = f"{entry['site']}/{i}/"
        own = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        member = _rebuilt(recipe) if make is None else _made_alike(make, recipe)
        _check_keys(f"tensors of {prefix}", set(own), set(member.state_dict()))
        for key, target in member.state_dict().items():
            _check_same_shape(prefix + key, target, own[key])
        load_tensors(member, own)
        _check_norm(member, norm, prefix)
        used |= {prefix + key for key in own}
        made.append(member)
    return made


def _described(member: Parameterization) -> JsonObject:
    """Return the description of a member; without options where its class does not hold them."""
    try:
        return describe(member)
    except OptionError:
        kind, shape = class_name(type(member)), list[Json](member.shape)
        return {"class": kind, "shape": shape, "rank": member.rank, "options": None}


def _rebuilt(recipe: JsonObject) -> Parameterization:
    try:
        made = rebuild(recipe)
    except OptionError as error:
        raise TargetError(
            f"an adapter's class must be known to the program and hold its options; {error}, or "
            "pass make="
        ) from error
    if not isinstance(made, Parameterization):
        raise TargetError(f"an adapter must be a Parameterization; got {recipe['class']}")
    return made


def _made_alike(make: Make, recipe: JsonObject) -> Parameterization:
    m, n = cast("tuple[int, int]", tuple(cast("list[int]", recipe["shape"])))
    made = make((m, n))
    same = _described(made)
    if any(same[key] != recipe[key] for key in ("class", "rank", "options")):
        raise TargetError(
            f"make must return what the file holds, {recipe['class']} of rank {recipe['rank']} "
            f"with {recipe['options']}; got {made!r}"
        )
    return made


def _check_norm(member: Parameterization, recorded: float, key: str) -> None:
    op, declared = member.factors().detach(), member.feasible_set
    if not declared.contains(op):
        excess = declared.excess(op)
        raise NotInSetError(
            f"an adapter must be inside the set declared for it; {key} exceeds "
            f"{type(declared).__name__} by {excess:.2e}: it was changed, or its class is wrong",
            excess=excess,
        )
    norm = float(op.schatten_norm(2))
    if not abs(norm - recorded) <= 1e3 * relative_tolerance(op.dtype, op.rank) * recorded:
        raise NotInSetError(
            f"an adapter must have the norm that was recorded, {recorded:.6g}; {key} has "
            f"{norm:.6g}: its bound or its tensors were changed after saving",
            excess=abs(norm - recorded),
        )


def _check_real(key: str, target: Tensor) -> None:
    if target.is_meta:
        raise TargetError(
            f"modules that were trained must be real before loading; {key} is on the meta device: "
            "load the base weights first"
        )


def _check_same_shape(key: str, target: Tensor, value: Tensor) -> None:
    if target.shape != value.shape:
        raise ShapeError(
            f"the tensor {key} must have shape {tuple(target.shape)}; got {tuple(value.shape)}"
        )


def _check_keys(what: str, in_file: set[str], expected: set[str]) -> None:
    missing, unexpected = sorted(expected - in_file), sorted(in_file - expected)
    if missing or unexpected:
        raise DataError(
            f"an adapter must fit exactly; {what} missing in the file: {missing}; unexpected in "
            f"the file: {unexpected}: load it into the model it was saved from"
        )


def _trained_targets(model: nn.Module, keys: list[str]) -> dict[str, Tensor]:
    own = {
        Site(place, key).name: x
        for place in places(model)
        for key, x in (
            *place.module.named_parameters(recurse=False),
            *place.module.named_buffers(recurse=False),
        )
    }
    _check_keys("trained tensors", set(keys), set(keys) & set(own))
    return {key: own[key] for key in keys}
