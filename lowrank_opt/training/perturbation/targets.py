"""Which weights are perturbed: the adapted ones, each once, with what is added to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.nn.adapters.adapted import present_updates
from lowrank_opt.nn.adapters.store import Store
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization

OperatorOf = Callable[[], LowRankOperator]
NamedOperators = Mapping[str, OperatorOf]


@dataclass(eq=False)
class PerturbedWeight:
    """One weight, everywhere it is used.

    Parameters
    ----------
    name : str
        The full name of the parameter.
    weight : nn.Parameter
    owners : list of (module, attribute)
    updates : list of callable
        What is added to it: one operator for each of its matrices; empty for none.
    axis : int, optional
        The axis that counts filters, if the caller says.
    """

    name: str
    weight: nn.Parameter
    owners: list[tuple[nn.Module, str]]
    updates: list[OperatorOf]
    axis: int | None = None
    reads: int = field(default=0)


def find_targets(
    model: nn.Module, pattern: str | None, updates: NamedOperators, axes: Mapping[str, int]
) -> list[PerturbedWeight]:
    """Return the weights whose names match, or by default the adapted ones; each once.

    Raises
    ------
    ShapeError
        If nothing is left, or `updates` or `axes` name something else.
    """
    known = _all_weights(model, updates, axes)
    if pattern is not None:
        chosen = [t for t in known if re.fullmatch(pattern, t.name)]
    else:
        matrices = [t for t in known if t.weight.ndim >= 2]
        chosen = [t for t in matrices if t.updates]
        chosen = chosen or [t for t in matrices if t.name.rpartition(".")[2] == "weight"]
    unknown = (set(updates) | set(axes)) - {target.name for target in chosen}
    if unknown or not chosen:
        raise ShapeError(
            f"targets must name weights of the model; got targets={pattern!r}, which gives "
            f"{[t.name for t in chosen]}, and unknown names {sorted(unknown)}"
        )
    return chosen


def _all_weights(
    model: nn.Module, updates: NamedOperators, axes: Mapping[str, int]
) -> list[PerturbedWeight]:
    """Return every parameter outside of parameterizations, with all places that use it."""
    found: dict[int, PerturbedWeight] = {}
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, Parameterization | Store)
        for part in module.modules()
    }
    for prefix, module in model.named_modules():
        if id(module) in inside:
            continue
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in found:
                found[id(weight)].owners.append((module, name))
                continue
            full = f"{prefix}.{name}" if prefix else name
            given = [updates[full]] if full in updates else _updates(model, prefix, name, weight)
            found[id(weight)] = PerturbedWeight(
                full, weight, [(module, name)], given, axes.get(full)
            )
    return list(found.values())


def _updates(model: nn.Module, prefix: str, name: str, weight: Tensor) -> list[OperatorOf]:
    """Return the updates of an adapted layer, or the one parameterization below or beside."""
    module, parent = model.get_submodule(prefix), model.get_submodule(prefix.rpartition(".")[0])
    adapted = present_updates(module, name)
    if adapted:
        return [_one_of(module, name, k) for k in range(len(adapted))]
    shape = tuple(weight.flatten(1).shape) if weight.ndim >= 2 else ()
    for place in (module.modules(), parent.children() if prefix else ()):
        fitting = [x for x in place if isinstance(x, Parameterization) and x.shape == shape]
        if len(fitting) == 1:
            return [fitting[0]]
    return []


def _one_of(layer: nn.Module, name: str, index: int) -> OperatorOf:
    return lambda: present_updates(layer, name)[index]
