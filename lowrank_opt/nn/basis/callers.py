"""What the code that reads an attribute does with it next, where that is certain."""

from __future__ import annotations

import dis
import functools
from collections.abc import Sequence
from types import CodeType, FrameType

# What a weight and the sum that stands for it have in common, and is no number of theirs.
_FACTS = frozenset({"dtype", "device", "shape", "ndim", "layout", "is_cuda", "is_meta"})
_CLASSES = frozenset({"Tensor", "Parameter"})
_SILENT = frozenset({"EXTENDED_ARG", "PRECALL", "PUSH_NULL"})


def asks_only_facts(frame: FrameType, name: str) -> bool:
    """Whether a frame reads an attribute for its dtype, shape or device, or for its class.

    ``x.name.dtype`` and ``isinstance(x.name, torch.Tensor)`` take the value from the stack: nothing
    else can see it. Anything that is not one of these, instruction by instruction, is not certain.
    """
    use = _use(frame.f_code, frame.f_lasti, name)
    known = (frame.f_globals.get("isinstance"), frame.f_builtins.get("isinstance"))
    return use == "fact" or (use == "class" and known == (None, isinstance))


@functools.lru_cache(maxsize=1024)
def _use(code: CodeType, offset: int, name: str) -> str | None:
    steps = [x for x in dis.get_instructions(code) if x.opname not in _SILENT]
    i = next((k for k, x in enumerate(steps) if x.offset == offset), None)
    if i is None or not _is_attribute(steps[i]) or steps[i].argval != name:
        return None
    if i + 1 < len(steps) and _is_attribute(steps[i + 1]) and steps[i + 1].argval in _FACTS:
        return "fact"
    return "class" if _is_of_class(steps, i) else None


def _is_of_class(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether the attribute read at i is the first argument of `isinstance`."""
    before = i - 1
    while before > 0 and _is_attribute(steps[before]):
        before -= 1
    after = i + 1
    while after + 1 < len(steps) and _is_attribute(steps[after + 1]):
        after += 1
    if before < 1 or after + 1 >= len(steps):
        return False
    called, first, kind, call = (steps[k] for k in (before - 1, before, after, after + 1))
    return (
        (called.opname, called.argval) == ("LOAD_GLOBAL", "isinstance")
        and _is_variable(first)
        and _is_variable(steps[i + 1])
        and kind.argval in _CLASSES
        and (call.opname, call.arg) == ("CALL", 2)
    )


def _is_attribute(step: dis.Instruction) -> bool:
    return step.opname == "LOAD_ATTR"


def _is_variable(step: dis.Instruction) -> bool:
    return step.opname in ("LOAD_GLOBAL", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF")
