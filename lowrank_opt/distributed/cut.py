"""Rows that are cut: each process numbers its own from zero, and has nothing of the others'.

What a column is solved from comes a block of columns at a time: each process asks the others for
the lines of the rows that its block has entries in, as in ALX.

References
----------
H. Mehta et al., ALX: Large scale matrix factorization on TPUs (2021), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.processes import (
    ProcessPart,
    bare,
    by_owner,
    check_any,
    lot,
    with_part,
)
from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Side

# Entries of a block of columns; a longer column is a block of its own.
BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class CutPart:
    """A `Part` whose rows are this process's alone.

    Parameters
    ----------
    inner : ProcessPart
        What rows and columns each process has, by the positions of the whole matrix.
    """

    inner: ProcessPart

    @property
    def cut(self) -> bool:
        """Whether rows are numbered from zero in each process."""
        return True

    @property
    def whole_shape(self) -> tuple[int, int]:
        """The shape of the whole matrix."""
        return self.inner.shape

    @property
    def held(self) -> tuple[slice, slice]:
        """The rows of this process, and all columns."""
        return self.inner.spans[0], slice(0, self.inner.shape[1])

    @property
    def spans(self) -> tuple[slice, slice]:
        """All rows that there are here, and the columns that this process solves for."""
        rows, cols = self.inner.spans
        return slice(0, rows.stop - rows.start), cols

    @property
    def count(self) -> int:
        """Entries of all processes."""
        return self.inner.count

    @property
    def processes(self) -> Processes:
        """The processes that the entries are spread over."""
        return self.inner.processes

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the processes; its gradient is that of each one's own part."""
        return self.inner.total(x)

    def shared(self, x: Tensor) -> Tensor:
        """Return a tensor that all have, such that its gradient is the sum of theirs."""
        return self.inner.shared(x)

    def largest(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over the processes."""
        return self.inner.largest(x)

    def gather(self, x: Tensor, side: Side) -> Tensor:
        """Return lines of the rows, as they are; or of all columns."""
        return x if side == 0 else self.inner.gather(x, side)

    def stacked(self, x: Tensor) -> tuple[Tensor, slice]:
        """Return the lines of all processes, however many each has, and which are one's own."""
        return self.inner.stacked(x)

    def columns(self, observations: Observations) -> NoReturn:
        """Raise: columns come in `blocks`."""
        raise NotImplementedError("rows are cut: entries of columns come in blocks")

    def blocks(self, observations: Observations) -> list[ColumnBlock]:
        """Return the entries of this process's columns, a few columns at a time."""
        order, sizes = by_owner(observations.cols, self.inner.ends[1])
        rows = observations.rows + self.inner.spans[0].start
        send = (rows, observations.cols, observations.values, observations.weights)
        i, j, v, w = (
            None if x is None else self.processes.exchange(x[order], sizes)[0] for x in send
        )
        assert i is not None, "sent"
        assert j is not None, "sent"
        assert v is not None, "sent"
        return list(_blocks(self.inner, i, j - self.spans[1].start, v, w))

    def share(
        self, observations: Observations, fraction: float, generator: torch.Generator | None
    ) -> tuple[Observations, Observations]:
        """Return what is left, and a random share of the entries: the same as of whole rows."""
        first = self.inner.spans[0].start
        held = lot(self.processes, observations, fraction, generator, first)
        return self._some(observations, ~held), self._some(observations, held)

    def whole(self, observations: Observations) -> Observations:
        """Return all entries, in every process, by the positions of the whole matrix."""
        rows = observations.rows + self.inner.spans[0].start
        sizes = self.processes.counts(len(rows), rows)
        send = (rows, observations.cols, observations.values, observations.weights)
        i, j, v, w = (None if x is None else self.processes.gather(x, sizes) for x in send)
        assert i is not None, "sent"
        assert j is not None, "sent"
        assert v is not None, "sent"
        return Observations(i, j, v, self.whole_shape, w)

    def _some(self, observations: Observations, mask: Tensor) -> Observations:
        w, i, j = observations.weights, observations.rows[mask], observations.cols[mask]
        weights = None if w is None else w[mask]
        return as_cut(
            bare(i, j, observations.values[mask], weights, observations.shape),
            self.processes,
            self.whole_shape,
        )


@dataclass(frozen=True, eq=False)
class ColumnBlock:
    """Some columns of a process, and who has the rows that they have entries in.

    Parameters
    ----------
    entries : Observations, shape (d, c), or None
        In the d rows that have some.
    at : slice
        Which they are, among the columns of this process.
    processes : Processes
    asked : Tensor, shape (k,), int64
        Rows here that other processes, and this one, have asked for, by who has.
    sizes : list of int
        How many each process has asked for.
    """

    entries: Observations | None
    at: slice
    processes: Processes
    asked: Tensor
    sizes: list[int]

    def fetch(self, x: Tensor) -> Tensor:
        """Return the lines of the d rows, of which every process has those of its own rows."""
        return self.processes.exchange(x[self.asked], self.sizes)[0]


def _blocks(
    part: ProcessPart, rows: Tensor, cols: Tensor, values: Tensor, weights: Tensor | None
) -> Iterator[ColumnBlock]:
    """Yield blocks, equally many in each process; columns are those of this one."""
    span = part.spans[1]
    ends = _ends(torch.bincount(cols, minlength=span.stop - span.start))
    most = int(part.largest(torch.tensor(len(ends) - 1)))
    ends += [ends[-1]] * (most + 1 - len(ends))
    column_of = cols.argsort(stable=True)
    places = torch.searchsorted(cols[column_of], torch.tensor(ends, device=cols.device)).tolist()
    for k in range(most):
        here = column_of[places[k] : places[k + 1]].sort().values
        found, i = rows[here].unique(return_inverse=True)
        starts = torch.tensor(part.ends[0][1:-1], device=rows.device)
        wanted = torch.bincount(
            torch.bucketize(found, starts, right=True), minlength=part.processes.size
        )
        asked, sizes = part.processes.exchange(found, wanted.tolist())
        entries, at = None, slice(ends[k], ends[k + 1])
        if at.stop > at.start:
            w = None if weights is None else weights[here]
            shape = (len(found), at.stop - at.start)
            entries = bare(i, cols[here] - at.start, values[here], w, shape)
        yield ColumnBlock(entries, at, part.processes, asked - part.spans[0].start, sizes)


def _ends(counts: Tensor) -> list[int]:
    """Return where blocks of columns begin and end, none with no column unless there is none."""
    ends, total = [0], 0
    for k, count in enumerate(counts.tolist()):
        if total > 0 and total + count > BLOCK:
            ends.append(k)
            total = 0
        total += count
    return [*ends, len(counts)] if len(counts) > ends[-1] else ends


def as_cut(own: Observations, processes: Processes, whole_shape: tuple[int, int]) -> Observations:
    """Return entries of this process's rows, numbered from zero, with what they are a part of.

    Raises
    ------
    ObservationError
        In all processes, if one has no entries.
    """
    count = check_any(processes, len(own), own.values)
    return with_part(own, CutPart(ProcessPart(processes, whole_shape, count)))


def cut_rows(observations: Observations) -> Observations:
    """Return a part whose rows are numbered within each process, of this process's rows alone.

    Solvers with the trait `cut` then keep no numbers of the rows of other processes, and their
    results are those of this process's rows.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        From `split_rows` or `own_rows`.

    Returns
    -------
    Observations, shape (k, n)

    Examples
    --------
    >>> import torch.distributed as dist
    >>> from lowrank_opt.distributed import split_rows
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> part = split_rows(Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2)))
    >>> cut_rows(part).part.held
    (slice(0, 2, None), slice(0, 2, None))
    >>> dist.destroy_process_group()
    """
    part = observations.part
    if not isinstance(part, ProcessPart):
        return observations
    span = part.spans[0]
    own = bare(
        observations.rows - span.start,
        observations.cols,
        observations.values,
        observations.weights,
        (span.stop - span.start, part.shape[1]),
    )
    return with_part(own, CutPart(part))
