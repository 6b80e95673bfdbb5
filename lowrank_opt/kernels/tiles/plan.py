"""Which program takes which groups of an axis, made once: a sweep then waits for nothing.

Short groups share programs with others about as long, longer ones have one each, and the longest
are cut into pieces whose results are summed, in order: no sum is atomic, results are the same in
every run.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.observations import CompressedAxis


class Tasks(NamedTuple):
    """Ranges of entries, each of one group.

    Parameters
    ----------
    groups, begins, ends : Tensor, shape (tasks,), int64
    """

    groups: Tensor
    begins: Tensor
    ends: Tensor

    def __bool__(self) -> bool:
        """Whether there is any."""
        return len(self.groups) > 0


class Plan(NamedTuple):
    """The tasks of an axis.

    Parameters
    ----------
    short, whole : Tasks
        Groups of at most `sizes.SHORT` entries, by length; and of at most `sizes.PIECE`, the
        longest first.
    pieces : Tasks
        Those of longer groups.
    long : Tensor, shape (L,), int64
        The longer groups.
    bounds : Tensor, shape (L + 1,), int64
        Group ``long[k]`` has the pieces ``bounds[k] .. bounds[k + 1] - 1``.
    """

    short: Tasks
    whole: Tasks
    pieces: Tasks
    long: Tensor
    bounds: Tensor

    @property
    def sums(self) -> Tasks:
        """The longer groups, with ranges of pieces."""
        return Tasks(self.long, self.bounds[:-1], self.bounds[1:])


_plans: WeakKeyDictionary[CompressedAxis, Plan] = WeakKeyDictionary()


def plan_of(axis: CompressedAxis) -> Plan:
    """Return the plan of an axis, made at the first call.

    Examples
    --------
    >>> from lowrank_opt.observations import Observations
    >>> plan = plan_of(Observations([0, 0, 2], [0, 1, 1], [1.0, 2.0, 3.0], (3, 2)).csr)
    >>> plan.short.groups.tolist(), plan.short.begins.tolist(), plan.short.ends.tolist()
    ([1, 2, 0], [2, 2, 0], [2, 3, 2])
    """
    plan = _plans.get(axis)
    if plan is None:
        plan = _plans[axis] = _planned(axis)
    return plan


def _planned(axis: CompressedAxis) -> Plan:
    counts = axis.counts
    order = counts.argsort(stable=True)
    limits = torch.tensor([sizes.SHORT, sizes.PIECE], device=counts.device)
    first, second = torch.searchsorted(counts[order], limits, right=True).tolist()
    short, whole = (_whole(axis, x) for x in (order[:first], order[first:second].flip(0)))
    return Plan(short, whole, *_pieces(axis, order[second:]))


def _whole(axis: CompressedAxis, groups: Tensor) -> Tasks:
    return Tasks(groups, axis.pointers[groups], axis.pointers[groups + 1])


def _pieces(axis: CompressedAxis, long: Tensor) -> tuple[Tasks, Tensor, Tensor]:
    numbers = -(-axis.counts[long] // sizes.PIECE)
    bounds = torch.cat((numbers.new_zeros(1), numbers.cumsum(0)))
    owner = torch.arange(len(long), device=long.device).repeat_interleave(numbers)
    place = torch.arange(len(owner), device=long.device) - bounds[owner]
    groups = long[owner]
    begins = axis.pointers[groups] + place * sizes.PIECE
    ends = torch.minimum(begins + sizes.PIECE, axis.pointers[groups + 1])
    return Tasks(groups, begins, ends), long, bounds
