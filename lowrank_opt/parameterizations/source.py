"""The map that members of one layout have in common, as it was when they were evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization

_DEVICES = ("cpu", "cuda")
_M = TypeVar("_M", bound=nn.Module)
Casts = dict[str, torch.dtype | None]


@dataclass(frozen=True)
class Source:
    """All that factors are computed with but the tensors; what is set later has no effect on it."""

    template: Parameterization
    tensors: tuple[Tensor, ...]
    casts: Casts

    @classmethod
    def of(cls, member: Parameterization, tensors: Iterable[Tensor]) -> Self:
        """Return the map of a member, given its tensors, each once."""
        return cls(_renewed(member, {}), tuple(tensors), _casts())

    def evaluate(self, tensors: Mapping[str, Tensor]) -> LowRankOperator:
        """Return the factors of a member that has these tensors, in the order of `tensors`.

        Raises
        ------
        RuntimeError
            If the evaluation sets an attribute: it would be set in a copy.
        """
        given = dict(zip(map(id, self.tensors), tensors.values(), strict=True))
        member = _renewed(self.template, given)
        before = _contents(member)
        op = member()
        if before != _contents(member):
            raise RuntimeError("a parameterization sets attributes while it is evaluated")
        return op

    def casting(self) -> ExitStack:
        """Return a block in which autocast is as it was."""
        block, present = ExitStack(), _casts()
        for kind, dtype in self.casts.items():
            if present[kind] != dtype:
                block.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
        return block


def _casts() -> Casts:
    """Return the dtypes of autocast, None where it is off."""
    return {
        kind: torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in _DEVICES
    }


def _renewed(module: _M, given: Mapping[int, Tensor]) -> _M:
    """Return a copy of modules with other tensors, by the identity of what they stand for."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    for kind in ("_parameters", "_buffers"):
        kept: dict[str, Tensor | None] = module.__dict__[kind]
        copied.__dict__[kind] = {key: given.get(id(x), x) for key, x in kept.items()}
    parts = module.__dict__["_modules"].items()
    copied.__dict__["_modules"] = {
        key: None if x is None else _renewed(x, given) for key, x in parts
    }
    return copied


def _contents(module: nn.Module) -> list[tuple[str, int]]:
    """Return what a module and its parts have, by identity."""
    own = module.__dict__
    found = [(key, id(x)) for key, x in own.items()]
    for kind in ("_parameters", "_buffers", "_modules"):
        found += [(key, id(x)) for key, x in own[kind].items()]
    for part in own["_modules"].values():
        found += [] if part is None else _contents(part)
    return found
