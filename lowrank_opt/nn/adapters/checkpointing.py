"""Activation checkpoints: what is computed again is computed by the adapters of the first time.

``torch.utils.checkpoint`` calls layers a second time, during the backward pass, when other adapters
may be active. Each checkpoint therefore keeps the states that the layers in it have seen, in order,
and the second call reads them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lowrank_opt.nn.adapters.record import Record, State
from lowrank_opt.nn.basis.errors import AdapterStateError

_LOGS = "lowrank_states"


@dataclass
class _Log:
    """The states seen in one checkpoint, and how many each repetition has read again."""

    states: list[State] = field(default_factory=list[State])
    read: dict[object, int] = field(default_factory=dict[object, int])


def present_state(record: Record) -> State:
    """Return the state of a record; in a repetition, that of the first time.

    Raises
    ------
    AdapterStateError
        If layers are called in the backward pass by a checkpoint that does not tell which one it
        repeats (``use_reentrant=True``, or one inside another; any checkpoint of torch 2.5), and
        the state has changed since.
    """
    state = record.state
    if torch.compiler.is_compiling():
        return state
    hooks = _hooks()
    again = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]
    if not again:
        record.see(state)
    if hooks is None:
        return record.only_seen(_ambiguous) if again else state
    closure = _closure(hooks[0])
    if "target_frame_ref" in closure:
        return _next(closure, record, state)
    if again:
        state = record.only_seen(_ambiguous)
    if "frame" in closure:
        _log(closure["frame"], record).states.append(state)
    return state


def _ambiguous() -> AdapterStateError:
    return AdapterStateError(
        "a checkpoint must be repeated by the adapters it was computed by; they were switched "
        "before the backward pass, and this kind of checkpoint does not tell: call "
        "checkpoint(..., use_reentrant=False), with a torch newer than 2.5, or backward() before "
        "switching"
    )


def _next(closure: dict[str, object], record: Record, state: State) -> State:
    reference = closure["target_frame_ref"]
    frame = reference() if callable(reference) else None
    log, group = _log(frame, record), closure.get("gid")
    i = log.read.get(group, 0)
    log.read[group] = i + 1
    return log.states[i] if i < len(log.states) else state


def _log(frame: object, record: Record) -> _Log:
    logs = frame.__dict__.setdefault(_LOGS, {})
    return logs.setdefault(id(record), _Log())


_Hooks: TypeAlias = tuple[Callable[..., object], Callable[..., object]] | None
# torch's own stack of hooks, and the transforms around a call: looked up once, asked at each call.
_C = torch._C  # pyright: ignore[reportPrivateUsage]
_AUTOGRAD, _TRANSFORMS = (getattr(_C, name) for name in ("_autograd", "_functorch"))
_TOP_HOOKS: Callable[[bool], _Hooks] = getattr(
    _AUTOGRAD, "_top_saved_tensors_default_hooks", lambda _: None
)
_LEVEL: Callable[[], int | None] = _TRANSFORMS.maybe_current_level


def _hooks() -> _Hooks:
    """Return what is called with tensors that are saved for the backward pass, if anything is."""
    return _TOP_HOOKS(False)


def is_plain() -> bool:
    """Whether `marked` returns tensors as they are: nothing looks at what is saved."""
    return torch.compiler.is_compiling() or _hooks() is None


def _closure(function: Callable[..., object]) -> dict[str, object]:
    function = getattr(function, "_torchdynamo_orig_callable", function)
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    names = () if code is None else code.co_freevars
    return {name: cell.cell_contents for name, cell in zip(names, cells or (), strict=True)}


class _Mark(torch.autograd.Function):
    """The identity, which saves an empty tensor whose shape tells the state."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, number: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        x, number = inputs
        ctx.save_for_backward(x.new_empty((0, number)))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _ = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return gradient, None

    @staticmethod
    def jvp(ctx: FunctionCtx, tangent: Tensor, _: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tangent.view_as(tangent)


def marked(x: Tensor, state: State) -> Tensor:
    """Return the tensor; inside a checkpoint, torch will refuse to repeat it in another state.

    torch compares the shapes of what is saved with those of the first time. So an empty tensor is
    saved whose shape is made from the state: if a checkpoint does not keep its states, the
    backward pass raises instead of following another adapter.
    """
    if not x.requires_grad or is_plain():
        return x
    return _Mark.apply(x, hash((state.active, state.merged, state.leading)) % (1 << 31))


def in_transform() -> bool:
    """Whether the call is inside a transform of `torch.func`."""
    return _LEVEL() is not None
