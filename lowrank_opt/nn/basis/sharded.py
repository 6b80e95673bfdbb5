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


def check_reads_shards(reader: FrameType, name: str) -> None:
    """Raise AdapterStateError unless shards are read by what cuts and gathers them."""
    if not str(reader.f_globals.get("__name__", "")).startswith("torch.distributed."):
        raise AdapterStateError(
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
    sharded = [(name, p) for name, p in model.named_parameters() if is_sharded(p)]
    managed = _managed() if sharded else set[int]()
    name = next((name for name, p in sharded if id(p) in managed), None)
    if name is not None:
        raise AdapterStateError(
            f"{action} needs a model that is not sharded, whose plan would not know of the change; "
            f"got {name!r} in shards: do it before fully_shard"
        )


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` manages parameters of the model."""
    sharded = [p for p in model.parameters() if is_sharded(p)]
    return bool(sharded) and not _managed().isdisjoint(map(id, sharded))


def _managed() -> set[int]:
    """Return the identities of all parameters that `fully_shard` manages, as shards."""
    states = sys.modules.get("torch.distributed._composable_state")
    known = {} if states is None else states._module_state_mapping
    found: set[int] = set()
    for reference in list(known.values()):
        state = reference()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:
            groups = [x for x in (getattr(state, "_fsdp_param_group", None),) if x is not None]
        found |= {id(p.sharded_param) for group in groups for p in group.fsdp_params}
    return found


@contextmanager
def whole(model: nn.Module) -> Generator[None]:
    """Put whole parameters in the place of shards inside the block; all processes take part."""
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
