"""The record of a model, found through its modules, and what it says now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import nn

from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.basis.errors import AdapterStateError


def record_of(model: nn.Module) -> Record:
    """Return the record of an adapted model.

    A part of an adapted model gets a record of its own, and parts that were adapted one by one get
    one together.

    Raises
    ------
    AdapterStateError
        If the model is not adapted; if it is a part of a model inside a block of `disabled` or
        `per_sample`, or has parts in different states.
    """
    found = dict(adapted_modules(model))
    if not found:
        raise AdapterStateError(
            f"the model must be adapted; got a {type(model).__name__} without adapters: "
            "call adapt(model, make, targets=...) first"
        )
    records = list({id(x.record): x.record for x in found.values()}.values())
    if len(records) == 1 and all(module in found for module in records[0].modules):
        return records[0]
    record = _joined(records)
    for module, store in found.items():
        store.record.modules.discard(module)
        store.record = record
        record.modules.add(module)
    return record


def _joined(records: Sequence[Record]) -> Record:
    states = [record.state for record in records]
    blocks = {(s.disabled, s.routings) for s in states}
    merged = {s.merged for s in states}
    if blocks != {(0, ())} or len(merged) > 1 or (len(states) > 1 and merged != {None}):
        raise AdapterStateError(
            "adapters of a part of a model change outside of disabled and per_sample blocks, and "
            "parts that were adapted apart must not be merged: act on the model that adapt was "
            "called with"
        )
    first = states[0]
    names = tuple(dict.fromkeys(name for s in states for name in s.names))
    active = dict(pair for s in states for pair in s.active)
    return Record(replace(first, names=names, active=tuple(active.items())))


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of the adapters of a model, in the order they came."""
    return list(record_of(model).state.names)


def active_adapters(model: nn.Module) -> dict[str, float]:
    """Return the adapters that count now, with their weights; of a merged model those in it.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> active_adapters(adapt(nn.Linear(4, 2), lambda s: Factored(s, 1), targets=".*"))
    {'default': 1.0}
    """
    return dict(record_of(model).state.chosen)


def check_known(model: nn.Module, names: Collection[str]) -> None:
    """Raise AdapterStateError unless the model has an adapter of each name."""
    known = adapter_names(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterStateError(f"adapters must exist; got {unknown}: the model has {known}")


def check_not_merged(model: nn.Module, action: str) -> None:
    """Raise AdapterStateError if the model is merged."""
    states = [store.record.state for _, store in adapted_modules(model)]
    merged = next((s.merged for s in states if s.merged is not None), None)
    if merged is not None:
        raise AdapterStateError(
            f"{action} needs a model that is not merged; it holds {[n for n, _ in merged]} "
            "merged: call unmerge(model) first"
        )


def check_not_routed(model: nn.Module, action: str) -> None:
    """Raise AdapterStateError inside a block of `per_sample`."""
    if any(store.record.state.routings for _, store in adapted_modules(model)):
        raise AdapterStateError(
            f"{action} needs a model outside of per_sample blocks: leave the block first"
        )
