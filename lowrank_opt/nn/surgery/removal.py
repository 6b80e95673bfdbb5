"""Take adapters out of a model again."""

from __future__ import annotations

from torch import nn

from lowrank_opt.nn.adapters.adapted import adapted_modules, detach
from lowrank_opt.nn.adapters.present import (
    check_known,
    check_not_merged,
    check_not_routed,
    record_of,
)
from lowrank_opt.nn.adapters.prints import forget_base
from lowrank_opt.nn.basis.sharded import check_whole
from lowrank_opt.nn.surgery.install import follow
from lowrank_opt.nn.surgery.passes import unwatch


def unload(model: nn.Module) -> nn.Module:
    """Remove every adapter and return the model as it was before `adapt`.

    Its modules have their own classes, parameters and buffers; the parameters stay frozen.

    Raises
    ------
    AdapterStateError
        If the model is not adapted, is merged, or inside a `per_sample` block.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> [name for name, _ in unload(model).named_parameters()]
    ['weight', 'bias']
    """
    record_of(model)
    check_whole(model, "unload")
    check_not_merged(model, "unload")
    check_not_routed(model, "unload")
    return detach_all(model)


def detach_all(model: nn.Module) -> nn.Module:
    """Forget the adapters of every module."""
    for module, _ in list(adapted_modules(model)):
        detach(module)
    forget_base(model)
    unwatch(model)
    return model


def remove_adapter(model: nn.Module, name: str) -> nn.Module:
    """Remove one adapter, with the modules and buffers that it has of its own.

    If it was active, the others that were stay so. Without the last adapter the model is what it
    was before `adapt`.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    name : str

    Returns
    -------
    nn.Module
        The model itself.

    Raises
    ------
    AdapterStateError
        If there is no such adapter, the model is merged, or inside a `per_sample` block.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> model = adapt(model, lambda shape: Factored(shape, 2), targets=".*", name="b")
    >>> sum(p.numel() for p in remove_adapter(model, "b").parameters())
    16
    """
    check_known(model, [name])
    check_whole(model, "remove_adapter")
    check_not_merged(model, "remove_adapter")
    check_not_routed(model, "remove_adapter")
    record = record_of(model)
    state = record.state
    rest = tuple(pair for pair in state.active if pair[0] != name)
    record.set(
        names=tuple(x for x in state.names if x != name),
        active=rest,
        lead=None if state.lead == name else state.lead,
    )
    for module, store in list(adapted_modules(model)):
        store.remove(name)
        if not store.keys:
            detach(module)
    if not record.state.names:
        forget_base(model)
    follow(model)
    return model
