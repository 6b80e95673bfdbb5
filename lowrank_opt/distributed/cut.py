"""Rows that are cut: each process numbers its own from zero, and has nothing of the others'.

Columns may be cut as well; `lowrank_opt.distributed.blocks` brings what is solved from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from lowrank_opt.distributed.blocks import LineBlock, line_blocks
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


@dataclass(frozen=True, eq=False)
class CutPart:
    """A `Part` whose rows are this process's alone.

    Parameters
    ----------
    inner : ProcessPart
        What rows and columns each process has, by the positions of the whole matrix.
    cut_columns : bool
        Whether each process has numbers of its own columns alone; entries name columns by their
        positions all the same.
    """

    inner: ProcessPart
    cut_columns: bool = False

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
        """The rows of this process, and all columns, or those of this process."""
        rows, cols = self.inner.spans
        return rows, cols if self.cut_columns else slice(0, self.inner.shape[1])

    @property
    def spans(self) -> tuple[slice, slice]:
        """All rows that there are here, and the columns that this process solves for."""
        rows, cols = self.inner.spans
        first = cols.start if self.cut_columns else 0
        return slice(0, rows.stop - rows.start), slice(cols.start - first, cols.stop - first)

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
        """Return lines of what is cut, as they are; or of all columns."""
        return x if side == 0 or self.cut_columns else self.inner.gather(x, side)

    def stacked(self, x: Tensor) -> tuple[Tensor, slice]:
        """Return the lines of all processes, however many each has, and which are one's own."""
        return self.inner.stacked(x)

    def columns(self, observations: Observations) -> NoReturn:
        """Raise: columns come in `blocks`."""
        raise NotImplementedError("rows are cut: entries of columns come in blocks")

    def blocks(self, observations: Observations, side: Side) -> list[LineBlock]:
        """Return the entries of this process's columns, a few at a time; or of its rows."""
        o = observations
        if side == 0:
            return list(line_blocks(self.inner, 0, o.rows, o.cols, o.values, o.weights))
        order, sizes = by_owner(o.cols, self.inner.ends[1])
        send = (o.rows + self.inner.spans[0].start, o.cols, o.values, o.weights)
        i, j, v, w = (
            None if x is None else self.processes.exchange(x[order], sizes)[0] for x in send
        )
        assert i is not None, "sent"
        assert j is not None, "sent"
        assert v is not None, "sent"
        return list(line_blocks(self.inner, 1, j - self.inner.spans[1].start, i, v, w))

    def column_counts(self, cols: Tensor) -> Tensor:
        """Return the number of entries of each column that is held, of all processes."""
        if not self.cut_columns:
            return self.inner.column_counts(cols)
        seen, counts = cols.unique(return_counts=True)
        _, sizes = by_owner(seen, self.inner.ends[1])
        pairs, _ = self.processes.exchange(torch.stack((seen, counts), dim=1), sizes)
        span = self.inner.spans[1]
        found = counts.new_zeros(span.stop - span.start)
        return found.index_add_(0, pairs[:, 0] - span.start, pairs[:, 1])

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
            columns=self.cut_columns,
        )


def as_cut(
    own: Observations, processes: Processes, whole_shape: tuple[int, int], *, columns: bool = False
) -> Observations:
    """Return entries of this process's rows, numbered from zero, with what they are a part of.

    Parameters
    ----------
    columns : bool
        Whether columns are cut as well.

    Raises
    ------
    ObservationError
        As `check_any`.
    """
    count = check_any(own, processes)
    return with_part(own, CutPart(ProcessPart(processes, whole_shape, count), columns))


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


def cut_columns(observations: Observations) -> Observations:
    """Return a part whose columns are cut as well as its rows: no process has a whole factor.

    For solvers with the trait `cut_columns`. Entries go on naming columns by their positions in the
    whole matrix; results are those of this process's rows and of its columns.

    Parameters
    ----------
    observations : Observations
        From `split_rows`, `own_rows` or `cut_rows`.

    Returns
    -------
    Observations, shape (k, n)

    Examples
    --------
    >>> import torch.distributed as dist
    >>> from lowrank_opt.distributed import split_rows
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> part = cut_columns(split_rows(Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))))
    >>> part.part.cut, part.part.cut_columns
    (True, True)
    >>> dist.destroy_process_group()
    """
    rows = cut_rows(observations)
    part = rows.part
    return with_part(rows, CutPart(part.inner, True)) if isinstance(part, CutPart) else rows
