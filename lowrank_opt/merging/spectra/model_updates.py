"""The matrices of an adapted model: its base weights, its updates, and new updates put into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.present import (
    check_not_merged,
    record_of,
)
from lowrank_opt.nn.adapters.slots import (
    WeightSlot,
    every_slot,
    layer_slots,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    adapted_weights,
)
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.own import own_buffers
from lowrank_opt.nn.surgery.targets import candidates
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization


def base_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the base weights that adapters update, each a matrix, by their names.

    Parameters
    ----------
    model : nn.Module
        Adapted, merged or not.

    Returns
    -------
    dict
        From the name of a weight before adaptation; with ``/0``, ``/1``, ... added where one
        weight is a stack of matrices. A weight that is tied occurs once.

    Raises
    ------
    AdapterStateError
        If the model is not adapted.
    """
    return {
        name: matrix
        for adapted, _ in _adapted(model)
        for name, matrix in zip(adapted.matrix_names, adapted.base_matrices(), strict=True)
    }


def model_updates(model: nn.Module) -> dict[str, LowRankOperator]:
    """Return the sums of the active adapters' updates, by the names of `base_matrices`.

    Of a merged model those of the adapters that it is merged with.

    Raises
    ------
    AdapterStateError
        If the model is not adapted.
    TargetError
        If no adapter is active.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> model_updates(model)
    {'weight': LowRankOperator(2 x 4, rank <= 1, torch.float32, cpu)}
    """
    found = {
        name: op
        for adapted, ops in _adapted(model)
        for name, op in zip(adapted.matrix_names, ops, strict=True)
    }
    if not found:
        raise TargetError("a model needs an active adapter; got none: call switch(model, name)")
    return found


def add_updates(
    model: nn.Module, updates: Mapping[str, LowRankOperator], *, name: str
) -> nn.Module:
    """Put fixed updates into a model, as a new adapter that becomes the active one.

    Parameters
    ----------
    model : nn.Module
        Adapted or not; not merged. Changed in place.
    updates : mapping of str to LowRankOperator
        By the names that `model_updates` gives; more than min(m, n) columns are merged, and
        weights that are tied to a named one are updated with it.
    name : str
        Of the new adapter.

    Returns
    -------
    nn.Module
        The model, as `lowrank_opt.nn.adapt` returns it.

    Raises
    ------
    TargetError, ShapeError
        If a name is no weight of the model, or a shape is not that of the weight. Nothing has
        been changed.
    AdapterStateError
        If the adapter exists, or the model is merged.

    Examples
    --------
    >>> from lowrank_opt.nn import disabled
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(4, 1))
    >>> model = add_updates(nn.Linear(4, 2, bias=False), {"weight": op}, name="ones")
    >>> with disabled(model):
    ...     base = model(torch.ones(4))
    >>> (model(torch.ones(4)) - base).round().tolist()
    [4.0, 4.0]
    """
    check_not_merged(model, "add_updates")
    if any(True for _ in adapted_modules(model)):
        check_new_name(model, name)
    slots = {slot.name: slot for c in candidates(layer_slots(model)) for slot in c.slots}
    named = {name: _names(slot) for name, slot in slots.items()}
    made: dict[int, list[Parameterization]] = {}
    for name_of_slot, names in named.items():
        slot = slots[name_of_slot]
        if set(names) & set(updates):
            pairs = zip(names, slot.shapes, strict=True)
            made.setdefault(id(slot.parameter), [_fixed(updates, n, shape) for n, shape in pairs])
    unknown = sorted(set(updates) - {n for names in named.values() for n in names})
    if unknown or not updates:
        raise TargetError(
            f"updates must have names of weights; got {unknown or 'none'}: the model has "
            f"{sorted(slots)[:20]}"
        )
    # Weights that are tied are updated in all their places.
    plan: Updates = [(s, made[id(s.parameter)]) for s in slots.values() if id(s.parameter) in made]
    return install(model, Plan(name, plan, own_buffers(every_slot(model))))


def _fixed(updates: Mapping[str, LowRankOperator], name: str, shape: tuple[int, int]) -> Frozen:
    if name not in updates:
        raise TargetError(f"a stack of matrices needs an update for each; {name} is missing")
    op = updates[name]
    if op.shape != shape:
        raise ShapeError(
            f"an update must have the shape of its weight; {name} is {shape}, got {op}"
        )
    return Frozen(op.truncate(min(shape)) if op.rank > min(shape) else op)


@torch.no_grad()
def _adapted(model: nn.Module) -> Iterator[tuple[AdaptedWeight, list[LowRankOperator]]]:
    """Yield each updated weight once, with the sums of its matrices' updates."""
    chosen = dict(record_of(model).state.chosen)
    terms: dict[int, list[AdaptedWeight]] = {}
    for adapted in adapted_weights(model, chosen):
        terms.setdefault(id(adapted.slot.parameter), []).append(adapted)
    for found in terms.values():
        each = {(x.adapter, id(x.updates[0])): x for x in found}.values()
        ops = [
            [chosen[x.adapter] * total().detach() for total in x.totals()]
            if chosen[x.adapter] != 1.0
            else [total().detach() for total in x.totals()]
            for x in each
        ]
        sums = [sum(same[1:], start=same[0]) for same in zip(*ops, strict=True)]
        yield found[0], cast("list[LowRankOperator]", sums)


def _names(slot: WeightSlot) -> list[str]:
    count = len(slot.shapes)
    return [f"{slot.name}/{i}" for i in range(count)] if count > 1 else [slot.name]
