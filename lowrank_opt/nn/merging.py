"""Merge adapters into the weights, out of place, and restore the very same base weights."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapted import AdaptedModule, add_dense, check_not_merged
from lowrank_opt.nn.errors import AdapterStateError
from lowrank_opt.nn.places import places
from lowrank_opt.nn.surgery import check_known, detach_wrappers, wrappers

Weights = list[tuple[AdaptedModule, dict[str, nn.Parameter]]]


def merge(model: nn.Module, adapters: Sequence[str] | None = None) -> None:
    r"""Put :math:`W_0 + \Delta W` in the places of the base weights; costs no time at inference.

    The base weights are kept beside the merged ones (so memory for both is needed), and `unmerge`
    puts the same tensors back: bit for bit, however often. Weights that are tied stay tied. The
    sum is rounded once, to the dtype of the weight.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    adapters : sequence of str, optional
        The active ones by default.

    Raises
    ------
    AdapterStateError
        If the model is not adapted, is merged already, or has no such adapter.
    TargetError
        If a merged weight is not finite. The model is unchanged.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> merge(model)
    >>> unmerge(model)
    """
    found = wrappers(model)
    check_not_merged(found, "merge")
    check_known(model, [] if adapters is None else adapters)
    weights = _merged_weights(found, adapters)
    for wrapper, merged in weights:
        names = wrapper.active if adapters is None else tuple(adapters)
        wrapper.keep(wrapper.exchange(merged), names)


def unmerge(model: nn.Module) -> None:
    """Put the kept base weights back, bit for bit.

    Raises
    ------
    AdapterStateError
        If the model is not merged.
    """
    merged = [wrapper for wrapper in wrappers(model) if wrapper.merged]
    if not merged:
        raise AdapterStateError("unmerge needs a merged model; got one that is not: call merge")
    for wrapper in merged:
        wrapper.exchange(wrapper.originals())
        wrapper.release()


def merge_and_unload(model: nn.Module, adapters: Sequence[str] | None = None) -> nn.Module:
    """Return the base model with the adapters merged in, and no wrapper left.

    A merged model keeps the adapters it was merged with; the base weights are given up.

    Raises
    ------
    AdapterStateError, TargetError
        As `merge`; also if `adapters` are given for a model that is merged already.
    """
    if adapters is not None or not any(wrapper.merged for wrapper in wrappers(model)):
        merge(model, adapters)
    return detach_wrappers(model, places(model))


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Compute with the base model inside the block, merged or not.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> with disabled(model):
    ...     y = model(torch.ones(4))
    """
    found = wrappers(model)
    before = [wrapper.enabled for wrapper in found]
    merged = [(wrapper, wrapper.exchange(wrapper.originals())) for wrapper in found]
    for wrapper in found:
        wrapper.enabled = False
    try:
        yield
    finally:
        for wrapper, weights in merged:
            wrapper.exchange(weights)
        for wrapper, enabled in zip(found, before, strict=True):
            wrapper.enabled = enabled


@torch.no_grad()
def _merged_weights(found: list[AdaptedModule], adapters: Sequence[str] | None) -> Weights:
    """Return the merged parameters: one for each base parameter, shared where that is shared."""
    made: dict[int, nn.Parameter] = {}
    result: Weights = []
    for wrapper in found:
        names = wrapper.active if adapters is None else adapters
        own: dict[str, nn.Parameter] = {}
        for name, ops in wrapper.updates(names).items():
            base = wrapper.base.get_parameter(name)
            if id(base) not in made:
                made[id(base)] = nn.Parameter(add_dense(base, ops), requires_grad=False)
            own[name] = made[id(base)]
        result.append((wrapper, own))
    if not all(w.is_meta or bool(torch.isfinite(w).all()) for w in made.values()):
        raise TargetError(
            "merged weights must be finite; got NaN or infinity, from the adapter or the base "
            "weight: the model is unchanged; find the layer with adapter_report(model)"
        )
    return result
