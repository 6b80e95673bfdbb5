r"""Which parameters of a base model are no longer what they were when it was adapted.

A caller may let base parameters be trained, and freeze them again before saving. So each module
keeps, beside its parameters, two numbers for each, weighted sums of its bits, and two for each
rounding to a narrower dtype: at most 64 bytes a tensor. That takes a pass over the parameters for
each of them when the first adapter comes, and one when an adapter is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowrank_opt.nn.adapters.store import STORE
from lowrank_opt.nn.basis.cut import in_one_piece

# The attribute of modules of an adapted model that holds the prints of their parameters.
PRINTS = "_lowrank_base_prints"

Print: TypeAlias = tuple[int, int]
Prints: TypeAlias = dict[torch.dtype, Print]

# Conversions of a whole model that round: a parameter that was only rounded is still the base's.
_ROUNDED: Mapping[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float16, torch.bfloat16),
    torch.float16: (torch.bfloat16,),
    torch.bfloat16: (torch.float16,),
}


def note_base(model: nn.Module) -> None:
    """Note the parameters of every module that has not been noted yet.

    What came into a model after it was noted, by another hand, is no part of the base: it stays
    unknown, and so differs.
    """
    seen: dict[int, Prints | None] = {}
    visited: set[int] = set()

    def visit(module: nn.Module, *, late: bool) -> None:
        if id(module) in visited:
            return
        visited.add(id(module))
        noted = PRINTS in module.__dict__
        if not noted and not late:
            module.__dict__[PRINTS] = _prints(module, seen)
        for key, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
            if part is not None and key != STORE:
                visit(part, late=noted or late)

    visit(model, late=False)
    if _note_again not in model._load_state_dict_post_hooks.values():  # pyright: ignore[reportPrivateUsage]
        model.register_load_state_dict_post_hook(_note_again)


def _prints(module: nn.Module, seen: dict[int, Prints | None]) -> dict[str, Prints | None]:
    noted: dict[str, Prints | None] = {}
    for key, p in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
        if p is not None:
            if id(p) not in seen:
                seen[id(p)] = prints_of(p)
            noted[key] = seen[id(p)]
    return noted


def forget_base(model: nn.Module) -> None:
    """Forget what was noted."""
    for module in model.modules():
        module.__dict__.pop(PRINTS, None)
        hooks = module._load_state_dict_post_hooks  # pyright: ignore[reportPrivateUsage]
        for key in [k for k, hook in hooks.items() if hook is _note_again]:
            del hooks[key]


def is_changed(module: nn.Module, name: str, value: Tensor) -> bool:
    """Whether a parameter of a module differs from what was noted, other than by a conversion.

    One that came later does. Where nothing could be noted - it was on the meta device, or is
    quantised -, whether it is trained now.
    """
    known: dict[str, Prints | None] = module.__dict__.get(PRINTS, {})
    if name not in known:
        return True
    noted, trained = known[name], value.requires_grad
    value = in_one_piece(value)
    if noted is None or not _can_be_noted(value):
        return trained
    first = next(iter(noted))
    if value.dtype in (first, *noted) and print_of(value) == noted[value.dtype]:
        return False
    wide = torch.promote_types(value.dtype, first)
    for dtype, marks in noted.items():
        rounded = value.detach().to(dtype)
        same = torch.equal(rounded.to(wide), value.detach().to(wide))
        if dtype != value.dtype and same and print_of(rounded) == marks:
            return False
    return True


def prints_of(x: Tensor) -> Prints | None:
    """Return the prints of a parameter and of its roundings, its own first; None if it has none."""
    x = in_one_piece(x)
    if not _can_be_noted(x):
        return None
    return {
        dtype: print_of(x.detach().to(dtype)) for dtype in (x.dtype, *_ROUNDED.get(x.dtype, ()))
    }


def _can_be_noted(x: Tensor) -> bool:
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided
    return plain and not x.is_meta and not x.is_quantized


@torch.no_grad()
def print_of(x: Tensor) -> Print:
    """Return two weighted sums of the bits of a tensor."""
    octets = x.detach().contiguous().flatten().view(torch.uint8)
    whole = octets.numel() // 8 * 8
    # A row of one number may stand anywhere in memory; words of eight bytes may not.
    words = (octets[:whole] if octets.storage_offset() % 8 == 0 else octets[:whole].clone()).view(
        torch.int64
    )
    rest = octets[whole:].to(torch.int64)
    cols = max(1, min(words.numel(), 4096))
    rows = words.numel() // cols
    body, tail = words[: rows * cols].view(rows, cols), words[rows * cols :]
    first = _weighted(body.sum(dim=1)) + 3 * _weighted(tail) + 7 * _weighted(rest)
    return first, _weighted(body.sum(dim=0))


def _weighted(x: Tensor) -> int:
    """Return a sum with odd weights that differ, modulo two to the 64th."""
    weights = torch.arange(1, x.numel() + 1, device=x.device) * 0x1E3779B97F4A7C15 | 1
    return int((x * weights).sum())


def _note_again(model: nn.Module, keys: object) -> None:
    """After the base weights were loaded, without any adapter, note them."""
    missing: list[str] = keys.missing_keys  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
    own = [key for key in model.state_dict(keep_vars=True) if ".lowrank_adapters." in f".{key}"]
    if own and set(own) <= set(missing):  # pyright: ignore[reportUnknownArgumentType]
        for module in model.modules():
            module.__dict__.pop(PRINTS, None)
        note_base(model)
