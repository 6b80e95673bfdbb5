"""Updates that are evaluated once while nothing that they are made of changes.

A model that generates text calls every layer for every token, and most parameterizations need more
arithmetic for their factors than a layer for one token. So without gradients the factors are kept,
beside copies of all numbers they were made of. At each call these are compared: no version counter
knows of writes through ``.data``, and an update holds few numbers next to its weight. Nothing is
kept of a map that draws from torch's generator; kept factors that somebody wrote into are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lowrank_opt.nn.adapters.checkpointing import in_transform
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.nn.basis.memory import same_numbers
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Factored, Parameterization
from lowrank_opt.sets import FeasibleSet

Key: TypeAlias = tuple[str, int]
# Of a module: its class, how many attributes it has, those that are not every module's, and the
# names of what it has registered.
Facts: TypeAlias = tuple[type, int, dict[str, object], list[str]]

# What a module has because it is one; `training` is a fact that may matter.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_IMMUTABLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum, type)
# Their factors are their parameters.
IMMEDIATE = (Factored, Frozen)
_PLAIN = (Tensor, nn.Parameter)
_NOTHING: Facts = (type(None), -1, {}, [])
# Copies of all numbers are made if there are not many more than in so many pairs of factors.
_MOST = 4


@dataclass(frozen=True)
class Kept:
    """Factors, and all that they were made of."""

    facts: list[Facts]
    numbers: list[Tensor]
    op: LowRankOperator
    versions: list[int]
    inference: bool

    def is_of(self, member: Parameterization) -> bool:
        """Whether the factors are what a parameterization would be evaluated to."""
        numbers: list[Tensor] = []
        return (
            self.inference is torch.is_inference_mode_enabled()
            and are_those(iter(self.facts), member, numbers)
            and _can_be_kept(numbers)
            and _same(self.numbers, numbers)
            and self.versions == _versions(self.op)
        )


def evaluated(
    member: Parameterization, kept: dict[Key, Kept], key: Key, record: Record
) -> LowRankOperator:
    """Return the factors of an update: evaluated, alone or with others, or as they were kept.

    Parameters
    ----------
    member : Parameterization
    kept : dict
        Of what was kept; written to.
    key : (str, int)
        The weight and the number of its matrix.
    record : Record
        Of the model.
    """
    if type(member) in IMMEDIATE or torch.compiler.is_compiling():
        return member()
    together = None if record.passing is None else record.passing.factors(member)
    if together is not None:
        return together
    if not _is_plain_call():
        return member()
    known = kept.get(key)
    if known is not None and known.is_of(member):
        return known.op
    facts: list[Facts] = []
    numbers: list[Tensor] = []
    if not collect(member, facts, numbers) or not _can_be_kept(numbers):
        return member()
    drawn = torch.get_rng_state()
    op = member()
    few = is_few(op, numbers)
    repeats = torch.equal(drawn, torch.get_rng_state())
    if few and repeats and all(is_immutable(x) for _, _, own, _ in facts for x in own.values()):
        copies = [x.detach().clone() for x in numbers]
        kept[key] = Kept(facts, copies, op, _versions(op), torch.is_inference_mode_enabled())
    return op


def _is_plain_call() -> bool:
    """Whether nothing looks at, changes or traces what is computed."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
        or torch._C._len_torch_function_stack()  # pyright: ignore[reportPrivateUsage]
        or torch_module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
        or in_transform()
    )


def is_few(op: LowRankOperator | Parameterization, numbers: list[Tensor]) -> bool:
    """Whether copies of the numbers that a matrix is made of are not much larger than its factors.

    Parameters
    ----------
    op : LowRankOperator or Parameterization
    numbers : list of Tensor
    """
    m, n = op.shape
    return sum(x.numel() for x in numbers) <= _MOST * (m + n + 1) * op.rank


def collect(module: nn.Module, facts: list[Facts], numbers: list[Tensor]) -> bool:
    """Collect all that a module computes with; whether that is all there is."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return False
    attributes = {key: x for key, x in own.items() if key not in _OF_EVERY_MODULE}
    facts.append((type(module), len(own), attributes, _contents(own, numbers)))
    parts = (part for part in own["_modules"].values() if part is not None)
    return all(collect(part, facts, numbers) for part in parts)


def _contents(own: dict[str, Any], numbers: list[Tensor]) -> list[str]:
    """Return the names of all that a module has registered, and collect its tensors."""
    names: list[str] = []
    for kind in ("_parameters", "_buffers"):
        for key, x in own[kind].items():
            if x is not None:
                names.append(key)
                numbers.append(x)
    names += own["_modules"]
    return names


def are_those(known: Iterator[Facts], module: nn.Module, numbers: list[Tensor]) -> bool:
    """Whether `collect` would find the same facts; collects the numbers as it does."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return False
    kind, size, attributes, names = next(known, _NOTHING)
    if type(module) is not kind or len(own) != size or _contents(own, numbers) != names:
        return False
    for key, x in attributes.items():
        present = own.get(key, _NOTHING)
        # What is kept cannot have been written to: the same object needs no look inside.
        if present is not x and not _are_equal(present, x):
            return False
    if not own["_modules"]:
        return True
    parts = (part for part in own["_modules"].values() if part is not None)
    return all(are_those(known, part, numbers) for part in parts)


def _can_be_kept(numbers: list[Tensor]) -> bool:
    recorded = torch.is_grad_enabled()
    for x in numbers:
        plain = type(x) in _PLAIN and x.is_cpu and x.layout is torch.strided
        # Signs that are still to be turned are not in the memory.
        if not plain or x.is_neg() or x.is_conj() or (recorded and x.requires_grad):
            return False
    return True


def _are_equal(known: object, fact: object) -> bool:
    try:
        return bool(known == fact)
    except (RuntimeError, TypeError, ValueError):
        # An attribute has become an array, which compares number by number.
        return False


def _versions(op: LowRankOperator) -> list[int]:
    """Return counters of writes; tensors of inference mode have none."""
    return [0 if x.is_inference() else x._version for x in op]


def _same(known: list[Tensor], numbers: list[Tensor]) -> bool:
    if len(known) != len(numbers):
        return False
    for x, y in zip(known, numbers, strict=True):
        if x.dtype is not y.dtype or not same_numbers(x, y):
            return False
    return True


def is_immutable(fact: object) -> bool:
    """Whether nothing can be written into an attribute of a module."""
    if isinstance(fact, tuple):
        return all(is_immutable(x) for x in fact)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(fact, FeasibleSet) and is_dataclass(fact):
        frozen = fact.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        return frozen and all(is_immutable(getattr(fact, x.name)) for x in fields(fact))
    return isinstance(fact, _IMMUTABLE)
