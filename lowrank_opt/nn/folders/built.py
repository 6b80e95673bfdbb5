"""Parameterizations made from what an adapter folder holds, and nothing larger than that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from lowrank_opt.errors import DataError, LowRankError, NotInSetError, TargetError
from lowrank_opt.nn.adapters.prints import print_of
from lowrank_opt.nn.folders.described import load, made_alike, rebuilt
from lowrank_opt.nn.folders.limits import at_most
from lowrank_opt.nn.folders.stored import (
    SETTLED,
    BaseLink,
    Bases,
    Stored,
    StoredWeight,
    check_keys,
    check_same_kind,
    check_same_shape,
    damaged,
    magnitude_key,
    own_key,
)
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.sets import relative_tolerance


def build(
    stored: Stored, make: Make | None, path: str | PathLike[str], bases: Bases | None = None
) -> dict[str, list[Parameterization]]:
    """Return the loaded parameterizations of each weight that is not tied to another one.

    Without `bases`, those are left out that are made of the base weight.

    Raises
    ------
    DataError
        If tensors are missing or unexpected, or the description claims sizes that the file's
        tensors do not have; before anything of that size is made.
    NotInSetError
        If an update is outside its declared set, or has another norm than recorded.
    TargetError
        If an update is made of the base weight, and the model has another one.
    """
    used = {own_key(x.name) for x in stored.own}
    made: dict[str, list[Parameterization]] = {}
    for weight in stored.weights.values():
        known = bases is not None or not any(weight.base)
        if weight.tied_to == weight.name and known:
            made[weight.name] = [
                _member(stored, weight, i, make, used, path, bases)
                for i in range(len(weight.recipes))
            ]
        elif weight.tied_to == weight.name:
            used |= {key for key in stored.tensors if key.startswith(f"{weight.name}/")}
    for weight in stored.weights.values():
        if weight.tied_to == weight.name and weight.magnitude is not None:
            used.add(magnitude_key(weight.name))
        used |= {key for key in _settled_keys(weight) if weight.tied_to == weight.name}
    check_keys("tensors", set(stored.tensors), used)
    if not stored.intact:
        # After all that tells what is wrong with it.
        raise damaged(path, ValueError("its description or the dtypes were changed after saving"))
    return made


def settled_of(stored: Stored, weight: StoredWeight) -> list[LowRankOperator]:
    """Return what is added to the updates of a weight and not trained any more.

    Raises
    ------
    DataError, ShapeError
        If tensors are missing, not finite, or of another shape.
    """
    m, n = weight.matrix
    found: list[LowRankOperator] = []
    for i, rank in enumerate(weight.settled):
        own = _under(stored.tensors, f"{weight.tied_to}/{i}/{SETTLED}")
        check_keys(f"settled tensors of {weight.name}", set(own), {"left", "right"})
        for key, shape in (("left", (m, rank)), ("right", (n, rank))):
            check_same_shape(f"{weight.name}/{i}/{SETTLED}{key}", shape, own[key])
            if not bool(torch.isfinite(own[key]).all()):
                raise DataError(f"an adapter must be finite; {weight.name} is not: train it again")
        found.append(LowRankOperator(own["left"], own["left"].new_ones(rank), own["right"]))
    return found


def magnitude_of(stored: Stored, weight: StoredWeight) -> Tensor | None:
    """Return the magnitudes of a weight, shape (matrices, outputs), or None if it has none.

    Raises
    ------
    DataError, ShapeError
        If they are missing, not finite, or of another shape.
    """
    if weight.magnitude is None:
        return None
    key = magnitude_key(weight.tied_to)
    check_keys("magnitudes", {key} & set(stored.tensors), {key})
    m, n = weight.matrix
    found = stored.tensors[key]
    check_same_shape(key, (len(weight.recipes), m if weight.magnitude == "rows" else n), found)
    check_same_kind(key, torch.empty(0), found)
    if not bool(torch.isfinite(found).all()):
        raise DataError(f"an adapter must be finite; {key} is not: train it again")
    return found


def _settled_keys(weight: StoredWeight) -> list[str]:
    return [
        f"{weight.name}/{i}/{SETTLED}{key}"
        for i in range(len(weight.settled))
        for key in ("left", "right")
    ]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def _member(
    stored: Stored,
    weight: StoredWeight,
    i: int,
    make: Make | None,
    used: set[str],
    path: str | PathLike[str],
    bases: Bases | None,
) -> Parameterization:
    prefix, recipe = f"{weight.name}/{i}/", weight.recipes[i]
    own = _under(stored.tensors, prefix)
    own = {key: x for key, x in own.items() if not key.startswith(SETTLED)}
    used |= {prefix + key for key in own}
    for key, link in weight.base[i].items():
        assert bases is not None, "without the base weights such members are not built"
        own[key] = _of_base(bases(weight.name, i).to(link.dtype), link, prefix + key)
    if recipe.get("shape") != [*weight.matrix]:
        raise DataError(
            f"a parameterization must have the shape of its matrix, {weight.matrix}; {prefix} "
            f"claims {recipe.get('shape')}: save the adapter again"
        )
    numbers = sum(x.numel() for x in own.values())

    def alike(make: Make) -> Parameterization:
        known = bases
        assert known is not None, "only loading takes a function"
        return made_alike(make, recipe, weight.name, lambda: known(weight.name, i))

    try:
        with at_most(numbers, f"{prefix} in {str(path)!r}"):
            member = rebuilt(recipe) if make is None else alike(make)
    except LowRankError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise damaged(path, error) from error
    load(member, own, prefix)
    _check_norm(member, weight.norms[i], prefix)
    return member


def _of_base(matrix: Tensor, link: BaseLink, key: str) -> Tensor:
    if print_of(matrix) != link.marks:
        raise TargetError(
            f"an adapter that turns its base weight needs the one it was saved with; {key} is "
            "another: load it into the base model it was trained on, in the same dtype"
        )
    return matrix


def _check_norm(member: Parameterization, recorded: float, key: str) -> None:
    op, declared = member.factors().detach(), member.feasible_set
    norm = float(op.schatten_norm(2))
    if not math.isfinite(norm):
        raise DataError(f"an adapter must be finite; {key} is not: train it again")
    if not declared.contains(op):
        excess = declared.excess(op)
        raise NotInSetError(
            f"an adapter must be inside the set declared for it; {key} exceeds "
            f"{type(declared).__name__} by {excess:.2e}: it was changed, or its class is wrong",
            excess=excess,
        )
    if not abs(norm - recorded) <= relative_tolerance(op.dtype, op.rank) * recorded:
        raise NotInSetError(
            f"an adapter must have the norm that was recorded, {recorded:.6g}; {key} has "
            f"{norm:.6g}: its bound or its tensors were changed after saving",
            excess=abs(norm - recorded),
        )
