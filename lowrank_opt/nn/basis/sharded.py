"""Parameters that are cut among processes: `torch.distributed.tensor.DTensor`.

`fully_shard` puts the shards of a parameter, and before each call the whole of it, where it was.
What reads an adapted model between calls gathers the shards first; what would change which
parameters there are is refused, for the plan of the shards knows nothing of it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from lowrank_opt.nn.basis.errors import AdapterStateError

P = ParamSpec("P")
R = TypeVar("R")


def is_sharded(x: object) -> bool:
    """Whether a tensor is a `DTensor`; asks without importing them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def is_same_sharded(value: object, base: Tensor | None) -> bool:
    """Whether a parameter takes the place of another as its shards, or as the whole of them.

    Parameters
    ----------
    value : object
    base : Tensor, optional
        What it takes the place of.
    """
    if not isinstance(value, nn.Parameter) or base is None or value.shape != base.shape:
        return False
    return is_sharded(value) or is_sharded(base)


def is_sharding(reader: FrameType) -> bool:
    """Whether shards are read by what cuts and gathers them."""
    return str(reader.f_globals.get("__name__", "")).startswith("torch.distributed.")


def reads_shards(name: str) -> AdapterStateError:
    """Return the error for a read of a weight in shards by anything else."""
    return AdapterStateError(
        f"an adapted weight is a sum of whole tensors; got a read of {name!r} while its shards "
        "lie in several processes: read it inside the forward pass"
    )


def is_planning(caller: FrameType | None) -> bool:
    """Whether a plan of tensor parallelism asks, perhaps through methods of modules.

    It registers the parts of each parameter itself; `fully_shard` sets attributes.
    """
    while caller is not None and caller.f_globals.get("__name__") == "torch.nn.modules.module":
        caller = caller.f_back
    home = "" if caller is None else str(caller.f_globals.get("__name__", ""))
    return home.startswith("torch.distributed.tensor")


def check_whole(model: nn.Module, action: str) -> None:
    """Raise AdapterStateError if `fully_shard` manages parameters of the model."""
    managed = _managed()
    name = next((name for name, x in model.named_modules() if id(x) in managed), None)
    if name is not None:
        raise AdapterStateError(
            f"{action} needs a model that is not sharded, whose plan would not know of the change; "
            f"got {name or type(model).__name__!r} in shards: do it before fully_shard"
        )


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` manages parameters of the model, in shards now or whole."""
    managed = _managed()
    return any(id(x) in managed for x in model.modules())


def _managed() -> set[int]:
    """Return the identities of all modules that have parameters which `fully_shard` manages."""
    return {id(module) for group in _groups() for module in _modules_of(group)}


def _modules_of(group: Any) -> list[nn.Module]:  # noqa: ANN401
    infos = [p._module_info for p in group.fsdp_params]
    return [module for info in infos for module in (info.module, *info.shared_modules)]


def _groups() -> list[Any]:
    """Return the groups of parameters that `fully_shard` gathers together."""
    states = sys.modules.get("torch.distributed._composable_state")
    found: list[Any] = []
    for reference in [] if states is None else list(states._module_state_mapping.values()):
        state = reference()
        groups = getattr(state, "_fsdp_param_groups", None)
        found += [getattr(state, "_fsdp_param_group", None)] if groups is None else groups
    return [group for group in found if group is not None]


def _to_shards(model: nn.Module) -> None:
    """Have shards where a group was left whole: for a caller, or after a forward pass.

    Whoever asks a module for its state dict has them, too, and the whole ones lose their memory.
    """
    mine = {id(module) for module in model.modules()}
    for group in _groups():
        if any(id(module) in mine for module in _modules_of(group)):
            group._to_sharded()


@contextmanager
def whole(model: nn.Module) -> Generator[None]:
    """Put whole parameters in the place of shards inside the block; all processes take part."""
    _to_shards(model)
    held: list[tuple[dict[str, Any], str, Tensor]] = [
        (kept, name, p)
        for module in model.modules()
        for kept in (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
        for name, p in kept.items()
        if p is not None and is_sharded(p)
    ]
    gathered: dict[int, Tensor] = {}
    for _, _, p in held:
        if id(p) not in gathered:
            full: Tensor = p.detach().full_tensor()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            gathered[id(p)] = (
                nn.Parameter(full, p.requires_grad) if isinstance(p, nn.Parameter) else full
            )
    try:
        for kept, name, p in held:
            kept[name] = gathered[id(p)]
        yield
    finally:
        for kept, name, p in held:
            kept[name] = p


def in_whole(
    function: Callable[Concatenate[nn.Module, P], R],
) -> Callable[Concatenate[nn.Module, P], R]:
    """Return a function of a model that sees whole parameters, shards gathered."""
    return _gathering(function, lambda model: True)


def in_whole_shards(
    function: Callable[Concatenate[nn.Module, P], R],
) -> Callable[Concatenate[nn.Module, P], R]:
    """Return a function of a model that sees whole what `fully_shard` has cut, and what else is."""
    return _gathering(function, is_fully_sharded)


def _gathering(
    function: Callable[Concatenate[nn.Module, P], R], needed: Callable[[nn.Module], bool]
) -> Callable[Concatenate[nn.Module, P], R]:
    @functools.wraps(function)
    def gathering(model: nn.Module, *args: P.args, **kwargs: P.kwargs) -> R:
        if not needed(model):
            return function(model, *args, **kwargs)
        with whole(model):
            return function(model, *args, **kwargs)

    return gathering
