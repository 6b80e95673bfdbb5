"""Parameterizations as they are written down in adapter files, and made again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from lowrank_opt.errors import DataError, OptionError, ShapeError, TargetError
from lowrank_opt.nn.surgery.options import Make, asked_of, takes
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.parameterizations.config import (
    Json,
    JsonObject,
    class_name,
    describe,
    load_tensors,
    rebuild,
)


def described(member: Parameterization) -> JsonObject:
    """Return the description of a member; without options where its class does not hold them."""
    try:
        return describe(member)
    except OptionError:
        kind, shape = class_name(type(member)), list[Json](member.shape)
        return {"class": kind, "shape": shape, "rank": member.rank, "options": None}


def check_unhooked(member: Parameterization, name: str) -> None:
    """Raise TargetError if hooks change what a member computes: no file holds them."""
    hooked = [m for m in member.modules() if m._forward_hooks or m._forward_pre_hooks]  # pyright: ignore[reportPrivateUsage]
    if not hooked:
        return
    plain = copy.deepcopy(member)
    for module in plain.modules():
        module._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]
        module._forward_pre_hooks.clear()  # pyright: ignore[reportPrivateUsage]
    with torch.no_grad():
        same = all(torch.equal(x, y) for x, y in zip(member(), plain(), strict=True))
    if not same:
        raise TargetError(
            f"a folder holds what an update is made of; a hook changes that of {name}, as "
            "ModuleAllocator does with those that are off: call its finish(), or remove the hook"
        )


def rebuilt(recipe: JsonObject) -> Parameterization:
    """Return a member like the described one; its tensors are still to be loaded.

    Raises
    ------
    TargetError
        If its class is not known to the program, or its options were not written.
    """
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


def made_alike(
    make: Make, recipe: JsonObject, name: str, weight: Callable[[], Tensor]
) -> Parameterization:
    """Return what `make` gives, which must be what is described.

    As for `adapt`, it gets ``weight=`` and ``name=`` if it has arguments of these names, and the
    ``rank=`` of the file if what it gives without is something else.

    Raises
    ------
    TargetError
        If it is something else.
    """
    m, n = cast("tuple[int, int]", tuple(cast("list[int]", recipe["shape"])))
    given: dict[str, object] = {"name": name, "generator": None}
    wanted = asked_of(make)
    given = {key: given[key] if key in given else weight() for key in wanted}
    made = make((m, n), **given)
    if not _is_as_described(made, recipe) and takes(make, "rank"):
        made = make((m, n), **{**given, "rank": recipe["rank"]})
    if not _is_as_described(made, recipe):
        raise TargetError(
            f"make must return what the file holds, {recipe['class']} of rank {recipe['rank']} "
            f"with {recipe['options']}; got {made!r}"
        )
    return made


def _is_as_described(made: Parameterization, recipe: JsonObject) -> bool:
    same = described(made)
    return all(same[key] == recipe[key] for key in ("class", "rank", "options"))


def load(member: Parameterization, own: Mapping[str, Tensor], prefix: str) -> None:
    """Load the tensors of a member, each of the right shape, and all of them.

    Raises
    ------
    DataError, ShapeError
        If some are missing or unexpected, or of another shape.
    """
    expected = member.state_dict()
    missing, unexpected = sorted(set(expected) - set(own)), sorted(set(own) - set(expected))
    if missing or unexpected:
        raise DataError(
            f"an adapter must fit exactly; tensors of {prefix} missing in the file: {missing}; "
            f"unexpected in the file: {unexpected}: save it again"
        )
    for key, target in expected.items():
        if target.shape != own[key].shape:
            raise ShapeError(
                f"the tensor {prefix}{key} must have shape {tuple(target.shape)}; got "
                f"{tuple(own[key].shape)}"
            )
        narrow = target.is_floating_point() and own[key].is_floating_point()
        if target.dtype != own[key].dtype and not narrow:
            raise DataError(
                f"the tensor {prefix}{key} must hold {target.dtype}; got {own[key].dtype}: it is "
                "damaged, save the adapter again"
            )
    load_tensors(member, own)
