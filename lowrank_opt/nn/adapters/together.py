"""Updates of all layers of one kind, evaluated in one call for one forward pass of the model.

What a map costs in a small layer is the number of operations, not the numbers in them. So while the
model that was adapted runs with gradients, the first layer that needs its factors has those of all
alike layers evaluated in one stacked call, and the others find theirs. They are dropped when the
forward pass ends; which layers are alike is remembered while the model is what it was. Whatever is
unusual - a checkpoint, a transform, a tracer, hooks, tensors of a
class of their own, a part of the model called by itself - is evaluated layer by layer as ever, and
so is a layer whose numbers are no longer those that the stack was made of.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack,  # pyright: ignore[reportPrivateUsage]
)

from lowrank_opt.nn.adapters.checkpointing import in_transform, is_plain
from lowrank_opt.nn.adapters.evaluation import (
    IMMEDIATE,
    Facts,
    are_those,
    collect,
    is_few,
    is_immutable,
)
from lowrank_opt.nn.basis.memory import same_numbers
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Offset, Parameterization
from lowrank_opt.parameterizations.together import evaluate_together

Mode: TypeAlias = tuple[object, ...]
_PLAIN = (Tensor, nn.Parameter)
# Stacks hold about this many numbers: larger ones leave the cache, and gain nothing.
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Member:
    """An update, and all that it is made of."""

    update: Parameterization
    facts: list[Facts]
    numbers: list[Tensor]
    stamps: list[tuple[object, ...]]

    def is_like(self, other: Member) -> bool:
        """Whether both compute the same of their numbers, and train the same of them."""
        if _ties(self.numbers) != _ties(other.numbers):
            return False
        if [_layout(x) for x in self.numbers] != [_layout(x) for x in other.numbers]:
            return False
        try:
            return self.facts == other.facts
        except (RuntimeError, TypeError, ValueError):
            # An attribute is an array, which compares number by number.
            return False

    def is_present(self) -> bool:
        """Whether the update is still made of that, as far as counters of writes know."""
        return self._stamps() == self.stamps

    def renewed(self) -> Member | None:
        """Return it with counters of now, or None if more is new than numbers."""
        stamps = self._stamps()
        if stamps is None or [x[2:] for x in stamps] != [x[2:] for x in self.stamps]:
            return None
        return Member(self.update, self.facts, self.numbers, stamps)

    def _stamps(self) -> list[tuple[object, ...]] | None:
        """Return stamps of the numbers, or None if the update is made of others."""
        numbers: list[Tensor] = []
        if not are_those(iter(self.facts), self.update, numbers):
            return None
        known = self.numbers
        if len(numbers) != len(known) or not all(map(operator.is_, numbers, known)):
            return None
        return [_stamp(x) for x in numbers]


@dataclass(frozen=True)
class Ready:
    """Factors that wait for their layer, with copies of the numbers that they are of."""

    member: Member
    mode: Mode
    copies: list[Tensor]
    op: LowRankOperator

    def is_valid(self, mode: Mode) -> bool:
        """Whether the factors are what the update would be evaluated to now."""
        pairs = zip(self.member.numbers, self.copies, strict=True)
        return mode == self.mode and self.member.is_present() and all(_same(*x) for x in pairs)


class ForwardPass:
    """One forward pass of an adapted model, and what was evaluated in it.

    Parameters
    ----------
    updates : function
        Returns the updates that the pass may need, in the order of the model.
    known : Alike
        Which of them are alike, if that is known; written to.
    """

    def __init__(self, updates: Callable[[], Sequence[Parameterization]], known: Alike) -> None:
        self._updates = updates
        self._known = known
        self._thread = threading.get_ident()
        self._stacks: dict[int, list[Member]] | None = None
        self._ready: dict[int, Ready] = {}
        self._unused: set[int] = set()

    def factors(self, update: Parameterization) -> LowRankOperator | None:
        """Return the factors of an update, or None if it is to be evaluated by itself."""
        mode = _mode()
        if mode is None or threading.get_ident() != self._thread:
            return None
        looked = self._stacks is None
        if self._stacks is None:
            self._stacks = self._known.stacks(self._updates)
        stack = self._stacks.pop(id(update), None)
        if stack is not None:
            self._evaluate(stack if looked else [x for x in stack if x.is_present()], mode)
        elif not self._known.has(update):
            self._known.forget()
        known = self._ready.get(id(update))
        if known is None or not known.is_valid(mode):
            return None
        self._unused.discard(id(update))
        return known.op

    def finish(self) -> None:
        """Note the end of the pass: what was evaluated in vain may be part of the model no more."""
        if self._unused:
            self._known.forget()

    def _evaluate(self, stack: Sequence[Member], mode: Mode) -> None:
        assert self._stacks is not None, "a stack is one of them"
        for x in stack:
            self._stacks.pop(id(x.update), None)
        if len(stack) < 2:
            return
        try:
            ops, copies = evaluate_together([x.update for x in stack])
        except Exception:
            # Branches on numbers, or draws of them, are not batched, nor is what wants parameters;
            # whatever else is wrong is raised by the layer that it is wrong with.
            self._known.refuse([x.update for x in stack])
            return
        for x, op, of in zip(stack, ops, copies, strict=True):
            self._ready[id(x.update)] = Ready(x, mode, [of[id(n)] for n in x.numbers], op)
        self._unused.update(id(x.update) for x in stack)


class Alike:
    """Which updates of a model are evaluated together, while it is what it was."""

    def __init__(self) -> None:
        self._unbatched: WeakSet[nn.Module] = WeakSet()
        self._updates: dict[int, Parameterization] = {}
        self._stacks: list[list[Member]] | None = None

    def stacks(self, updates: Callable[[], Sequence[Parameterization]]) -> dict[int, list[Member]]:
        """Return for each update, by its identity, those that it is evaluated with."""
        found = None if self._stacks is None else _renewed(self._stacks)
        if found is None:
            given = [x for x in updates() if type(x) not in IMMEDIATE]
            members = [_member(x) for x in given if x not in self._unbatched]
            found = _stacks(x for x in members if x is not None)
            # What cannot be stacked now may be later.
            self._stacks = None if None in members else found
            self._updates = {id(x): x for x in given}
        return {id(x.update): stack for stack in found for x in stack}

    def has(self, update: Parameterization) -> bool:
        """Whether an update was one of the model when that was looked at last."""
        return id(update) in self._updates

    def forget(self) -> None:
        """Look at the model again in the next pass."""
        self._updates, self._stacks = {}, None

    def refuse(self, updates: Iterable[Parameterization]) -> None:
        """Note updates that cannot be stacked."""
        self._unbatched.update(updates)
        self.forget()


def _renewed(stacks: Sequence[Sequence[Member]]) -> list[list[Member]] | None:
    """Return stacks with counters of now, or None if more is new than numbers."""
    found: list[list[Member]] = []
    for stack in stacks:
        now = [x.renewed() for x in stack]
        present = [x for x in now if x is not None]
        if len(present) < len(stack):
            return None
        found.append(present)
    return found


def _stacks(members: Iterable[Member]) -> list[list[Member]]:
    """Return members that are evaluated with each other; some are by themselves."""
    groups: list[list[Member]] = []
    for member in members:
        group = next((group for group in groups if group[0].is_like(member)), None)
        if group is None:
            groups.append([member])
        else:
            group.append(member)
    found: list[list[Member]] = []
    for group in groups:
        first = group[0].update
        count = max(1, _AT_ONCE // (sum(first.shape) * first.rank))
        # As many in each: none is left over.
        turns = -(-len(group) // count)
        ends = [i * len(group) // turns for i in range(turns + 1)]
        found += [group[i:j] for i, j in itertools.pairwise(ends)]
    return found


def _member(update: Parameterization) -> Member | None:
    """Return an update with what it is made of, or None if it is better evaluated alone."""
    facts, numbers = list[Facts](), list[Tensor]()
    if not collect(update, facts, numbers):
        return None
    if not all(map(_can_be_stacked, numbers)) or not any(x.requires_grad for x in numbers):
        return None
    # A start that was evaluated alone is subtracted: to be zero, the rest is evaluated alone too.
    if any(issubclass(kind, Offset) for kind, *_ in facts) or not is_few(update, numbers):
        return None
    if not all(is_immutable(x) for _, _, own, _ in facts for x in own.values()):
        return None
    return Member(update, facts, numbers, [_stamp(x) for x in numbers])


def _can_be_stacked(x: Tensor) -> bool:
    plain = type(x) in _PLAIN and x.is_leaf and x.layout is torch.strided
    odd = x.is_meta or x.is_inference() or x.is_neg() or x.is_conj()
    return plain and not odd and not _is_watched(x)


def _is_watched(x: Tensor) -> bool:
    """Whether hooks wait for gradients; those of members that are not used would get None."""
    return bool(x._backward_hooks or x._post_accumulate_grad_hooks)  # pyright: ignore[reportPrivateUsage]


def _ties(numbers: list[Tensor]) -> list[int]:
    """Return for each tensor the place where it comes first."""
    places: dict[int, int] = {}
    return [places.setdefault(id(x), i) for i, x in enumerate(numbers)]


def _layout(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device, x.requires_grad


def _stamp(x: Tensor) -> tuple[object, ...]:
    return x._version, x.data_ptr(), _is_watched(x), x.is_neg(), x.is_conj(), *_layout(x)


def _same(x: Tensor, copy: Tensor) -> bool:
    # A mode may have made the copy: of a class that has no memory, or on another device.
    if type(copy) is not Tensor or copy.device != x.device:
        return False
    # On an accelerator a comparison would wait for it: there the counter of writes has to do.
    return not x.is_cpu or same_numbers(x, copy)


def _mode() -> Mode | None:
    """Return what factors depend on besides their numbers; None where nothing is stacked."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # pyright: ignore[reportPrivateUsage]
        return None
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or not is_plain():
        return None
    if torch_module._has_any_global_hook():  # pyright: ignore[reportPrivateUsage]
        return None
    repeated = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]
    if repeated or in_transform() or torch._C._len_torch_function_stack():  # pyright: ignore[reportPrivateUsage]
        return None
    if torch.autograd.forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return None
    casts = tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    )
    return (*casts, *_get_current_dispatch_mode_stack())
