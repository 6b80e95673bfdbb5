"""The hooks by which an adapted model knows when a forward pass of it begins and ends."""

from __future__ import annotations

import torch
from torch import nn

from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.adapters.together import Alike, ForwardPass
from lowrank_opt.parameterizations import Parameterization


def watch(model: nn.Module) -> None:
    """Let alike updates be evaluated together while the model runs; its parts tell no more."""
    unwatch(model)
    if len(active_updates(model)) > 1:
        model.register_forward_pre_hook(begin)
        model.register_forward_hook(end, always_call=True)


def unwatch(model: nn.Module) -> None:
    """Take the hooks of `watch` away, from the parts of the model too."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):  # pyright: ignore[reportPrivateUsage]
            for key in [key for key, hook in hooks.items() if hook in (begin, end)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)  # pyright: ignore[reportPrivateUsage]


def begin(model: nn.Module, _: object) -> None:
    """Begin a forward pass."""
    # Without gradients factors are kept.
    idle = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    record = None if idle else _record(model)
    if record is not None:
        alike = record.alike
        if not isinstance(alike, Alike):
            alike = record.alike = Alike()
        record.passing = ForwardPass(lambda: active_updates(model), alike)


def end(model: nn.Module, *_: object) -> None:
    """End a forward pass, whether it returned or raised."""
    record = None if torch.compiler.is_compiling() else _record(model)
    if record is not None and record.passing is not None:
        record.passing.finish()
        record.passing = None


def _record(model: nn.Module) -> Record | None:
    return next((store.record for _, store in adapted_modules(model)), None)


def active_updates(model: nn.Module) -> list[Parameterization]:
    """Return the updates of active adapters, once each, in the order of the model."""
    found: dict[int, Parameterization] = {}
    for _, store in adapted_modules(model):
        for name, _ in store.record.state.active:
            part = store.part(name)
            for members in () if part is None else part.updates.values():
                found.update((id(x), x) for x in members)
    return list(found.values())
