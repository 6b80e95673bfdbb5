"""How parameterizations are written down in adapter files, and made again without pickle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.frozen import Frozen
from lowrank_opt.nn.sites import type_name
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import (
    DeLoRA,
    DenseCore,
    Factored,
    HomogeneousBall,
    NBLoRA,
    NestedSVD,
    Offset,
    Parameterization,
    Weighted,
)
from lowrank_opt.sets import KyFanBall, SingularValueBox

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]
Shape: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """How one class is described in JSON and built from that description.

    Parameters
    ----------
    describe : function of a parameterization
        Returns its options, besides shape and rank, as JSON.
    build : function of (shape, rank, options)
        Returns one like it; its tensors are then loaded.
    """

    describe: Callable[[Parameterization], JsonObject]
    build: Callable[[Shape, int, JsonObject], Parameterization]


def register_parameterization(
    kind: type[Parameterization],
    describe: Callable[[Parameterization], JsonObject],
    build: Callable[[Shape, int, JsonObject], Parameterization],
) -> None:
    """Let `load_adapter` rebuild a parameterization of your own from a file.

    Without this, `load_adapter` asks for ``make=``.

    Parameters
    ----------
    kind : type
    describe, build
        See `Recipe`.

    Raises
    ------
    TargetError
        If the class is registered already.
    """
    if type_name(kind) in _RECIPES:
        raise TargetError(f"a parameterization is registered once; got {type_name(kind)} again")
    _RECIPES[type_name(kind)] = Recipe(describe, build)


def describe(parameterization: Parameterization) -> JsonObject:
    """Return class, shape, rank and options; without options for a class not registered."""
    kind = type_name(type(parameterization))
    recipe = _RECIPES.get(kind)
    options = None if recipe is None else recipe.describe(parameterization)
    shape: list[Json] = [*parameterization.shape]
    return {"class": kind, "shape": shape, "rank": parameterization.rank, "options": options}


def rebuild(description: JsonObject) -> Parameterization:
    """Return a parameterization like the described one; its tensors are still to be loaded.

    Raises
    ------
    TargetError
        If its class is not registered.
    """
    kind, options = description["class"], description["options"]
    recipe = _RECIPES.get(str(kind))
    if recipe is None or not isinstance(options, dict):
        raise TargetError(
            f"a parameterization in a file must be registered; got {kind}: import its module and "
            "call register_parameterization, or pass make="
        )
    m, n = _ints(description["shape"])
    return recipe.build((m, n), _ints([description["rank"]])[0], options)


def _ints(value: Json) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(x, int) for x in value):
        raise ValueError(f"integers expected, got {value!r}")
    return [x for x in value if isinstance(x, int)]


def _number(value: Json) -> float:
    """Return a float; JSON has no infinity, so it is written as a word."""
    return math.inf if value == "inf" else float(value)  # pyright: ignore[reportArgumentType]


def _word(value: float) -> Json:
    return "inf" if math.isinf(value) else value


def _describe_nb_lora(p: Parameterization) -> JsonObject:
    assert isinstance(p, NBLoRA)
    declared, skew = p.feasible_set, p.skew is not None
    if isinstance(declared, SingularValueBox):
        return {"bounds": list(declared.bounds), "skew": skew}
    if isinstance(declared, KyFanBall):
        return {"radius": declared.radius, "ky_fan": declared.k, "skew": skew}
    return {"radius": declared.radius, "p": _word(declared.p), "skew": skew}


def _build_nb_lora(shape: Shape, rank: int, options: JsonObject) -> NBLoRA:
    skew = bool(options["skew"])
    bounds, order = options.get("bounds"), options.get("ky_fan")
    if isinstance(bounds, list):
        return NBLoRA(shape, rank, bounds=[_number(b) for b in bounds], skew=skew)
    radius = _number(options["radius"])
    if isinstance(order, int):
        return NBLoRA(shape, rank, radius=radius, ky_fan=order, skew=skew)
    return NBLoRA(shape, rank, radius=radius, p=_number(options["p"]), skew=skew)


def _describe_delora(p: Parameterization) -> JsonObject:
    assert isinstance(p, DeLoRA)
    return {
        "radius": p.radius,
        "variant": p.variant,
        "learn_radius": p.learned_radius is not None,
        "column_norms": p.column_norms is not None,
    }


def _build_delora(shape: Shape, rank: int, options: JsonObject) -> DeLoRA:
    return DeLoRA(
        shape,
        rank,
        radius=_number(options["radius"]),
        column_norms=torch.ones(shape[1]) if options["column_norms"] else None,
        variant=options["variant"],  # pyright: ignore[reportArgumentType]
        learn_radius=bool(options["learn_radius"]),
    )


def _inner(p: Parameterization) -> JsonObject:
    assert isinstance(p, NestedSVD | Weighted | Offset)
    return {"inner": describe(p.inner)}


def _built_inner(options: JsonObject) -> Parameterization:
    inner = options["inner"]
    assert isinstance(inner, dict)
    return rebuild(inner)


def _describe_weighted(p: Parameterization) -> JsonObject:
    assert isinstance(p, Weighted)
    return {
        **_inner(p),
        "row_weights": p.row_weights is not None,
        "col_weights": p.col_weights is not None,
    }


def _build_weighted(shape: Shape, rank: int, options: JsonObject) -> Weighted:
    ones = [
        torch.ones(size) if options[name] else None
        for name, size in zip(("row_weights", "col_weights"), shape, strict=True)
    ]
    return Weighted(_built_inner(options), *ones)


def _build_nested(shape: Shape, rank: int, options: JsonObject) -> NestedSVD:
    inner = _built_inner(options)
    frames = [torch.eye(size, k) for size, k in zip(shape, inner.shape, strict=True)]
    return NestedSVD((frames[0], frames[1]), inner)


def _describe_offset(p: Parameterization) -> JsonObject:
    assert isinstance(p, Offset)
    return {**_inner(p), "columns": p.offset.rank}


def _build_offset(shape: Shape, rank: int, options: JsonObject) -> Offset:
    (columns,) = _ints([options["columns"]])
    zero = _zero_operator(shape, columns)
    return Offset(_built_inner(options), minus_initial=False, offset=zero)


def _zero_operator(shape: Shape, columns: int) -> LowRankOperator:
    left, right = torch.zeros(shape[0], columns), torch.zeros(shape[1], columns)
    return LowRankOperator(left, torch.ones(columns), right)


def _attribute(p: Parameterization, name: str) -> float:
    value = getattr(p, name)
    assert not isinstance(value, Tensor)
    return float(value)


_RECIPES: dict[str, Recipe] = {
    type_name(Factored): Recipe(
        lambda p: {"scaling": _attribute(p, "scaling")},
        lambda shape, rank, o: Factored(shape, rank, scaling=_number(o["scaling"])),
    ),
    type_name(HomogeneousBall): Recipe(
        lambda p: {"radius": _attribute(p, "radius"), "p": _attribute(p, "p")},
        lambda shape, rank, o: HomogeneousBall(
            shape, rank, radius=_number(o["radius"]), p=_number(o["p"])
        ),
    ),
    type_name(NBLoRA): Recipe(_describe_nb_lora, _build_nb_lora),
    type_name(DeLoRA): Recipe(_describe_delora, _build_delora),
    type_name(DenseCore): Recipe(lambda p: {}, lambda shape, rank, o: DenseCore(shape)),
    type_name(NestedSVD): Recipe(_inner, _build_nested),
    type_name(Weighted): Recipe(_describe_weighted, _build_weighted),
    type_name(Offset): Recipe(_describe_offset, _build_offset),
    type_name(Frozen): Recipe(
        lambda p: {}, lambda shape, rank, o: Frozen(_zero_operator(shape, rank))
    ),
}
