"""Sum adapters into the weights, out of place, and take the sums away again."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.present import (
    check_known,
    check_not_merged,
    check_not_routed,
    record_of,
)
from lowrank_opt.nn.adapters.record import State, Weights, as_weights, names_of
from lowrank_opt.nn.adapters.slots import (
    is_finite,
)
from lowrank_opt.nn.adapters.store import Store
from lowrank_opt.nn.adapters.weights import adapted_weights
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.errors import AdapterStateError
from lowrank_opt.nn.basis.plain import become_plain
from lowrank_opt.nn.basis.sealed import SealedWeight
from lowrank_opt.nn.basis.sharded import check_whole, in_whole_shards
from lowrank_opt.nn.surgery.removal import detach_all
from lowrank_opt.nn.surgery.switching import check_lead

Sums: TypeAlias = dict[str, tuple[Tensor, Tensor]]


@in_whole_shards
def merge(
    model: nn.Module,
    adapters: Sequence[str] | Mapping[str, float] | None = None,
    *,
    lead: str | None = None,
    dequantize: bool = False,
) -> None:
    r"""Sum :math:`W_0 + \Delta W` once, for all layers to read; costs no time at inference.

    The base weights stay in the modules beside the sums (so memory for both is needed), and
    `unmerge` takes the sums away: bit for bit, however often. Weights that are tied stay tied. The
    sum is rounded once, to the dtype of the weight.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    adapters : sequence of str, or mapping to weights, optional
        The active ones by default.
    lead : str, optional
        As for `switch`.
    dequantize : bool
        Whether weights that are held in few bits get dense sums, in the dtype that their layers
        compute in. `unmerge` gives the base back as it was held, which is not touched.

    Raises
    ------
    AdapterStateError
        If the model is not adapted, is merged already, is inside a `per_sample` block, or has no
        such adapter.
    TargetError
        If a merged weight is not finite, or is held in few bits and `dequantize` is not asked for.
        The model is unchanged.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> merge(model)
    >>> unmerge(model)
    """
    record = record_of(model)
    check_not_merged(model, "merge")
    check_not_routed(model, "merge")
    state = record.state
    chosen = state.active if adapters is None else as_weights(adapters)
    check_known(model, names_of(chosen))
    if adapters is not None:
        check_lead(model, names_of(chosen), lead)
    leading = state.lead if adapters is None else lead
    if not dequantize:
        _check_wide(model, chosen)
    sums = _sums(model, chosen, replace(state, merged=chosen, merged_lead=leading))
    for store, own in sums:
        store.keep_sums(own)
    record.set(merged=chosen, merged_lead=leading)


def unmerge(model: nn.Module) -> None:
    """Let the layers compute with the base weights and the updates again, bit for bit.

    Raises
    ------
    AdapterStateError
        If the model is not merged.
    """
    record = record_of(model)
    if record.state.merged is None:
        raise AdapterStateError("unmerge needs a merged model; got one that is not: call merge")
    record.set(merged=None, merged_lead=None)
    for _, store in adapted_modules(model):
        store.keep_sums({})


@torch.no_grad()
def merge_and_unload(
    model: nn.Module,
    adapters: Sequence[str] | Mapping[str, float] | None = None,
    *,
    dequantize: bool = False,
) -> nn.Module:
    """Return the model with adapters merged into its weights, and no adapter left.

    A merged model keeps the adapters it was merged with; the base weights are given up. Modules
    and buffers that the adapter has of its own take the places of the base model's. Layers whose
    weights were computed, or held in few bits, become plain ones.

    Raises
    ------
    AdapterStateError, TargetError
        As `merge`; also if `adapters` are given for a model that is merged already.
    """
    check_whole(model, "merge_and_unload")
    if adapters is not None or record_of(model).state.merged is None:
        merge(model, adapters, dequantize=dequantize)
    state = replace(record_of(model).state, disabled=0)
    changed: list[tuple[nn.Module, str, Tensor]] = []
    for module, store in adapted_modules(model):
        for name in store.changed:
            own = store.own(name, state.chosen, state.leading)
            total = store.sum(module, name, state)
            total = own if total is None else total
            if total is not None:
                changed.append((module, name, total))
    detach_all(model)
    for module, name, tensor in changed:
        if storage.is_sealed(module, name):
            become_plain(module, name, tensor)
        kept = module._buffers if name in module._buffers else module._parameters  # pyright: ignore[reportPrivateUsage]
        kept[name] = tensor  # pyright: ignore[reportArgumentType]
    return model


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Compute with the base model inside the block, its modules and buffers too, merged or not.

    Blocks may be nested, and adapters may be merged, switched or added inside: what that changes is
    seen after the block.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> with disabled(model):
    ...     y = model(torch.ones(4))
    """
    record = record_of(model)
    record.set(disabled=record.state.disabled + 1)
    try:
        yield
    finally:
        record.set(disabled=record.state.disabled - 1)


def _check_wide(model: nn.Module, chosen: Weights) -> None:
    """Raise TargetError if a weight to merge is held in few bits."""
    names = set(names_of(chosen))
    narrow = {
        found.name: type(found.slot.layer.module).__name__
        for found in adapted_weights(model, names)
        if storage.is_sealed(found.slot.layer.module, found.slot.weight)
        and storage.is_narrow(found.slot.layer.module, found.slot.weight)
    }
    if narrow:
        first = ", ".join(f"{name} ({kind})" for name, kind in list(narrow.items())[:5])
        more = f" and {len(narrow) - 5} more" if len(narrow) > 5 else ""
        raise TargetError(
            f"merging keeps a sum beside each weight; got {first}{more}, held in few bits, where "
            "sums are dense: pass dequantize=True if there is memory for them, or leave the "
            "adapter unmerged"
        )


@torch.no_grad()
def _sums(model: nn.Module, chosen: Weights, state: State) -> list[tuple[Store, Sums]]:
    """Return the merged weights, with what they are of; shared where base parameters are."""
    made: dict[int, Tensor] = {}
    result: list[tuple[Store, Sums]] = []
    for module, store in adapted_modules(model):
        sums: Sums = {}
        for name in sorted(store.changed):
            change = store.change(module, name, chosen, state)
            if change is None:
                continue
            base = store.base(module, name, state)
            key = id(base.held if isinstance(base, SealedWeight) else base)
            if key not in made:
                made[key] = nn.Parameter(change.add_dense(base), requires_grad=False)
            sums[name] = made[key], base
        result.append((store, sums))
    if not all(is_finite(w) for w in made.values()):
        raise TargetError(
            "merged weights must be finite; got NaN or infinity, from the adapter or the base "
            "weight: the model is unchanged; find the layer with adapter_report(model)"
        )
    return result
