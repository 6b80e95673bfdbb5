"""Which weights are perturbed: the adapted ones, each once, with what is added to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from lowrank_opt.errors import ShapeError
from lowrank_opt.nn.adapters.adapted import present_updates
from lowrank_opt.nn.adapters.store import Store
from lowrank_opt.nn.basis.errors import AdapterStateError
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
    updates : callable, optional
        Returns what is added to it now: one operator for each of its matrices; empty for none.
    axis : int, optional
        The axis that counts filters, if the caller says.
    """

    name: str
    weight: nn.Parameter
    owners: list[tuple[nn.Module, str]]
    updates: Callable[[], Sequence[LowRankOperator]] | None
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
    AdapterStateError
        If no adapter of an adapted model is active, and the caller does not choose.
    """
    known = _all_weights(model, updates, axes)
    if pattern is not None:
        chosen = [t for t in known if re.fullmatch(pattern, t.name)]
    else:
        matrices = [t for t in known if t.weight.ndim >= 2]
        chosen = [t for t in matrices if t.updates is not None]
        if not chosen and any(isinstance(module, Store) for module in model.modules()):
            raise AdapterStateError(
                "an adapter must be active for the noise on its weights; got none: switch one on, "
                "unmerge, or name weights by targets="
            )
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
            given = _one(updates.get(full)) or _updates(model, prefix, name, weight)
            found[id(weight)] = PerturbedWeight(
                full, weight, [(module, name)], given, axes.get(full)
            )
    return list(found.values())


def _updates(
    model: nn.Module, prefix: str, name: str, weight: Tensor
) -> Callable[[], Sequence[LowRankOperator]] | None:
    """Return the updates of an adapted layer, or the one parameterization below or beside."""
    module, parent = model.get_submodule(prefix), model.get_submodule(prefix.rpartition(".")[0])
    if present_updates(module, name):
        return partial(present_updates, module, name)
    shape = tuple(weight.flatten(1).shape) if weight.ndim >= 2 else ()
    for place in (module, *((parent,) if prefix else ())):
        fitting = [x for x in _own_parts(place, module) if x.shape == shape]
        if len(fitting) == 1:
            return _one(fitting[0])
    return None


def _own_parts(place: nn.Module, module: nn.Module) -> list[Parameterization]:
    """Return parameterizations below a module or beside it, none of an adapter: that may be off."""
    near = place.modules() if place is module else place.children()
    held = {id(x) for store in place.modules() if isinstance(store, Store) for x in store.modules()}
    return [x for x in near if isinstance(x, Parameterization) and id(x) not in held]


def _one(update: OperatorOf | None) -> Callable[[], Sequence[LowRankOperator]] | None:
    return None if update is None else lambda: [update()]
