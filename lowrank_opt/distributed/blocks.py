"""The entries of one's own columns, or rows, a block at a time, with the lines that each needs.

What a column is solved from comes a block of columns at a time: each process asks the others for
the lines of the rows that its block has entries in, as in ALX. Where columns are cut too, rows are
solved like this as well, and no process has all lines of either factor.

References
----------
H. Mehta et al., ALX: Large scale matrix factorization on TPUs (2021), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import ProcessPart, bare, by_owner
from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Side

# Entries of a block of columns (or rows); a longer one is a block of its own.
BLOCK = 1 << 22
# Lines that a process sends at a time.
LINES = 1 << 20


@dataclass(frozen=True, eq=False)
class LineBlock:
    """Some columns of a process, and who has the rows that they have entries in; or rows likewise.

    Parameters
    ----------
    entries : Observations, shape (d, c), or None
        In the d rows that have some.
    at : slice
        Which they are, among the columns of this process.
    places : Tensor, shape (entries,), int64
        Where the entries are among those that blocks were made of.
    processes : Processes
    rounds : list of Round
        Equally many in each process.
    """

    entries: Observations | None
    at: slice
    places: Tensor
    processes: Processes
    rounds: list[Round]

    def fetch(self, x: Tensor) -> Tensor:
        """Return the lines of the d rows, of which every process has those of its own rows."""
        if len(self.rounds) == 1:
            (only,) = self.rounds
            return self.processes.exchange(x[only.asked], only.sizes)[0]
        found = x.new_empty(sum(len(r.into) for r in self.rounds), *x.shape[1:])
        for r in self.rounds:
            found[r.into] = self.processes.exchange(x[r.asked], r.sizes)[0]
        return found

    def give_back(self, lines: Tensor, to: Tensor) -> None:
        """Add lines of the d rows to those of whom `fetch` has them from."""
        for r in self.rounds:
            to.index_add_(0, r.asked, self.processes.exchange(lines[r.into], r.wanted)[0])


class Round(NamedTuple):
    """Some of the lines of a block: as many as all processes together may ask one for at a time.

    Parameters
    ----------
    asked : Tensor, shape (k,), int64
        Rows here that other processes, and this one, have asked for, by who has.
    sizes : list of int
        How many each process has asked for.
    into : Tensor, int64
        Which of the d lines of the block come.
    wanted : list of int
        How many of them each process has.
    """

    asked: Tensor
    sizes: list[int]
    into: Tensor
    wanted: list[int]


def line_blocks(
    part: ProcessPart,
    side: Side,
    lines: Tensor,
    others: Tensor,
    values: Tensor,
    weights: Tensor | None,
) -> Iterator[LineBlock]:
    """Yield blocks of columns (1) or rows (0), equally many in each process.

    Their numbers are those among the lines of this process, the others' of the whole matrix.
    """
    across = part.spans[1 - side]
    ends = _ends(torch.bincount(lines, minlength=part.spans[side].stop - part.spans[side].start))
    most = int(part.largest(torch.tensor(len(ends) - 1)))
    ends += [ends[-1]] * (most + 1 - len(ends))
    line_of = lines.argsort(stable=True)
    places = torch.searchsorted(lines[line_of], torch.tensor(ends, device=lines.device)).tolist()
    for k in range(most):
        here = line_of[places[k] : places[k + 1]].sort().values
        found, index = others[here].unique(return_inverse=True)
        # In ascending order, which is that of their owners.
        _, wanted = by_owner(found, part.ends[1 - side])
        asked, sizes = part.processes.exchange(found, wanted)
        rounds = list(_rounds(part, asked - across.start, sizes, wanted))
        entries, at = None, slice(ends[k], ends[k + 1])
        if at.stop > at.start:
            w = None if weights is None else weights[here]
            line, (c, d) = lines[here] - at.start, (at.stop - at.start, len(found))
            i, j, shape = (line, index, (c, d)) if side == 0 else (index, line, (d, c))
            entries = bare(i, j, values[here], w, shape)
        yield LineBlock(entries, at, here, part.processes, rounds)


def _rounds(
    part: ProcessPart, asked: Tensor, sizes: list[int], wanted: list[int]
) -> Iterator[Round]:
    # A process that all others ask for all of its lines would hold a copy of each for each of them.
    step = max(1, LINES // part.processes.size)
    most = int(part.largest(torch.tensor(max(sizes))))
    for first in range(0, max(most, 1), step):
        some = _some_of_each(sizes, first, step)
        counts, come = ([max(min(k - first, step), 0) for k in each] for each in (sizes, wanted))
        into = _some_of_each(wanted, first, step).to(asked.device)
        yield Round(asked[some.to(asked.device)], counts, into, come)


def _some_of_each(sizes: list[int], first: int, step: int) -> Tensor:
    """Return positions of a few of each group, of groups one after another.

    Examples
    --------
    >>> _some_of_each([3, 1], 0, 2).tolist(), _some_of_each([3, 1], 2, 2).tolist()
    ([0, 1, 3], [2])
    """
    starts = [0, *accumulate(sizes)]
    spans = (
        torch.arange(a + min(first, k), a + min(first + step, k))
        for a, k in zip(starts, sizes, strict=False)
    )
    return torch.cat(list(spans))


def _ends(counts: Tensor) -> list[int]:
    """Return where blocks of lines begin and end, none with no line unless there is none."""
    ends, total = [0], 0
    for k, count in enumerate(counts.tolist()):
        if total > 0 and total + count > BLOCK:
            ends.append(k)
            total = 0
        total += count
    return [*ends, len(counts)] if len(counts) > ends[-1] else ends
