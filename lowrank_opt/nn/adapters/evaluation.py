"""Updates that are evaluated once while nothing that they are made of changes.

A model that generates text calls every layer for every token, and most parameterizations need more
arithmetic for their factors than a layer for one token. So without gradients the factors are kept,
as they are applied, beside copies of all numbers they were made of. At each call these are
compared: no version counter knows of writes through ``.data``, and an update holds few numbers next
to its weight. Where it is made of the weight too, that is looked at instead (`Glance`). Nothing is
kept of a map that draws from torch's generator; kept factors that somebody wrote into are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from math import prod
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lowrank_opt.nn.adapters.checkpointing import in_transform
from lowrank_opt.nn.adapters.record import Record
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.nn.basis.memory import Copy, Glance, is_legible
from lowrank_opt.nn.basis.products import Prepared, tensors_of
from lowrank_opt.nn.basis.standing import Standing, is_hooked
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Factored, Parameterization
from lowrank_opt.parameterizations.turned.leading import LeadingValues
from lowrank_opt.sets import FeasibleSet

_T = TypeVar("_T")
Key: TypeAlias = tuple[str, int]
# Of a module: its class, how many attributes it has, those that are not every module's, and the
# names of what it has registered.
Facts: TypeAlias = tuple[type, int, dict[str, object], list[str]]

# What a module has because it is one; `training` is a fact that may matter.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_IMMUTABLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum, type)
# What a map remembers for others, and does not compute with.
_IMMUTABLE += (LeadingValues,)
# Their factors are their parameters.
IMMEDIATE = (Factored, Frozen)
_NOTHING: Facts = (type(None), -1, {}, [])
# Copies of all numbers are made if there are not many more than in so many pairs of factors.
_MOST = 4
# Weights of fewer numbers are copied, as parameters are.
_SMALL = 1 << 14


@dataclass(frozen=True)
class Kept(Generic[_T]):
    """What was computed, and all that it was made of.

    Attributes
    ----------
    standing : Standing
        Of the modules.
    numbers : list of Copy or Glance
        Of the tensors that were given, and of those of the modules.
    value : what was computed
    tensors : tuple of Tensor
        That it consists of.
    versions : list of int
        Counters of writes to these.
    inference : bool
    """

    standing: Standing
    numbers: list[Copy | Glance]
    value: _T
    tensors: tuple[Tensor, ...]
    versions: list[int]
    inference: bool

    def is_of(self, modules: Sequence[nn.Module], given: Sequence[Tensor]) -> bool:
        """Whether that is what would be computed of modules and tensors now."""
        numbers = self.standing.numbers(modules)
        return (
            numbers is not None
            and self.inference is torch.is_inference_mode_enabled()
            and _are_those_numbers(self.numbers, [*given, *numbers] if given else numbers)
            and self.versions == _versions(self.tensors)
        )


def evaluated(
    member: Parameterization, kept: dict[Key, Kept[Any]], key: Key, record: Record
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
    return kept_or_made(kept, key, (member,), (), member, _ready)


def _ready(op: LowRankOperator) -> tuple[LowRankOperator, tuple[Tensor, ...]]:
    return Prepared.of(op), tensors_of(op)


def kept_or_made(
    kept: dict[Key, Kept[Any]],
    key: Key,
    updates: Sequence[Parameterization],
    given: Sequence[Tensor],
    make: Callable[[], _T],
    ready: Callable[[_T], tuple[_T, tuple[Tensor, ...]]],
) -> _T:
    """Return what is made of updates and tensors; as it was kept, while these are what they were.

    Not for code that is being compiled.

    Parameters
    ----------
    kept : dict
        Of what was kept; written to.
    key : (str, int)
    updates : sequence of Parameterization
    given : sequence of Tensor
        What it is made of.
    make : function
        Makes it, of nothing else.
    ready : function
        Returns what was made as it is used most cheaply, and the tensors that it consists of.
    """
    if not _is_plain_call():
        return make()
    known = kept.get(key)
    if known is not None and known.is_of(updates, given):
        return known.value
    standing = Standing(updates)
    facts, numbers = list[Facts](), [*given]
    if not all([collect(x, facts, numbers) for x in updates]) or not _can_be_kept(numbers):
        return make()
    drawn = torch.get_rng_state()
    made = make()
    seen = _seen(updates, numbers, len(given))
    repeats = torch.equal(drawn, torch.get_rng_state())
    if not seen or not repeats:
        return made
    if not all(is_immutable(x) for _, _, own, _ in facts for x in own.values()):
        return made
    value, tensors = ready(made)
    inference = torch.is_inference_mode_enabled()
    kept[key] = Kept(standing, seen, value, tensors, _versions(tensors), inference)
    return value


def _seen(
    updates: Sequence[Parameterization], numbers: Sequence[Tensor], given: int
) -> list[Copy | Glance]:
    """Return copies of tensors, a glance at weights among them; none if that is too much."""
    weight = max(_SMALL, min(prod(x.shape) for x in updates) // 2)
    large = [
        x.numel() >= weight and (i < given or type(x) is Tensor) and Glance.can_be_told(x)
        for i, x in enumerate(numbers)
    ]
    rest = sum(x.numel() for x, told in zip(numbers, large, strict=True) if not told)
    if rest > _MOST * sum(_size(x) for x in updates):
        return []
    return [Glance(x) if told else Copy(x) for x, told in zip(numbers, large, strict=True)]


def _is_plain_call() -> bool:
    """Whether nothing looks at, changes or traces what is computed."""
    return not (
        torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]
        or torch.autograd.forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
        or torch._C._len_torch_function_stack()  # pyright: ignore[reportPrivateUsage]
        or torch_module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
        or in_transform()
    )


def is_few(update: Parameterization, numbers: Sequence[Tensor]) -> bool:
    """Whether copies of the numbers that a matrix is made of are not much larger than its factors.

    Parameters
    ----------
    update : Parameterization
    numbers : sequence of Tensor
    """
    return sum(x.numel() for x in numbers) <= _MOST * _size(update)


def _size(update: Parameterization) -> int:
    """Return how many numbers the factors of an update have."""
    m, n = update.shape
    return (m + n + 1) * update.rank


def collect(module: nn.Module, facts: list[Facts], numbers: list[Tensor]) -> bool:
    """Collect all that a module computes with; whether that is all there is."""
    own = module.__dict__
    if is_hooked(own):
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
    if is_hooked(own):
        return False
    kind, size, attributes, names = next(known, _NOTHING)
    if type(module) is not kind or len(own) != size or _contents(own, numbers) != names:
        return False
    for key, x in attributes.items():
        present = own.get(key, _NOTHING)
        # What is kept cannot have been written to: the same object needs no look inside.
        if present is not x and not (is_immutable(present) and _are_equal(present, x)):
            return False
    for part in own["_modules"].values():
        if part is not None and not are_those(known, part, numbers):
            return False
    return True


def _can_be_kept(numbers: Iterable[Tensor]) -> bool:
    recorded = torch.is_grad_enabled()
    return all(is_legible(x) and not (recorded and x.requires_grad) for x in numbers)


def _are_those_numbers(known: list[Copy | Glance], numbers: Sequence[Tensor | None]) -> bool:
    if len(known) != len(numbers):
        return False
    recorded = torch.is_grad_enabled()
    for copy, x in zip(known, numbers, strict=True):
        # None is what was taken out of a module since.
        if x is None or (recorded and x.requires_grad) or not copy.is_of(x):
            return False
    return True


def _are_equal(known: object, fact: object) -> bool:
    try:
        return bool(known == fact)
    except (RuntimeError, TypeError, ValueError):
        # An attribute has become an array, which compares number by number.
        return False


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return counters of writes; tensors of inference mode have none."""
    return [0 if x.is_inference() else x._version for x in tensors]


def is_immutable(fact: object) -> bool:
    """Whether nothing can be written into an attribute of a module."""
    if isinstance(fact, tuple):
        return all(is_immutable(x) for x in fact)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(fact, FeasibleSet) and is_dataclass(fact):
        frozen = fact.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        return frozen and all(is_immutable(getattr(fact, x.name)) for x in fields(fact))
    return isinstance(fact, _IMMUTABLE)
