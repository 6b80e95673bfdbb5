"""What a process knows of the parts of the others: the `Part` of its entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor

from lowrank_opt.distributed.digest import mixed
from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.errors import ObservationError
from lowrank_opt.observations import Observations, SparsityPattern
from lowrank_opt.observations.part import Part, Side
from lowrank_opt.observations.sparsity import sort_pairs


@dataclass(frozen=True, eq=False)
class ProcessPart:
    """A `Part`: rows and columns are cut into consecutive ranges, one for each process.

    Parameters
    ----------
    processes : Processes
    shape : tuple of int
        Of the whole matrix.
    count : int
        Entries of all processes.
    """

    processes: Processes
    shape: tuple[int, int]
    count: int

    @property
    def cut(self) -> bool:
        """Whether rows are numbered from zero in each process."""
        return False

    @property
    def cut_columns(self) -> bool:
        """Whether each process has numbers of its own columns alone."""
        return False

    @property
    def whole_shape(self) -> tuple[int, int]:
        """The shape of the whole matrix."""
        return self.shape

    @property
    def held(self) -> tuple[slice, slice]:
        """All rows and columns: what belongs to them is whole in every process."""
        return slice(0, self.shape[0]), slice(0, self.shape[1])

    @property
    def spans(self) -> tuple[slice, slice]:
        """The rows, and the columns, that this process solves for."""
        rank = self.processes.rank
        rows, cols = (slice(ends[rank], ends[rank + 1]) for ends in self.ends)
        return rows, cols

    @cached_property
    def ends(self) -> tuple[list[int], list[int]]:
        """Where the ranges of rows, and of columns, begin and end."""
        rows, cols = (cuts(size, self.processes.size) for size in self.shape)
        return rows, cols

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the processes; its gradient is that of each one's own part."""
        return self.processes.total(x)

    def shared(self, x: Tensor) -> Tensor:
        """Return a tensor that all have, such that its gradient is the sum of theirs."""
        return self.processes.shared(x)

    def largest(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over the processes."""
        return self.processes.largest(x)

    def gather(self, x: Tensor, side: Side) -> Tensor:
        """Return lines of all rows (or columns), of which this process has those of its span."""
        ends = self.ends[side]
        return self.processes.gather(x, [b - a for a, b in pairwise(ends)])

    def stacked(self, x: Tensor) -> tuple[Tensor, slice]:
        """Return the lines of all processes, however many each has, and which are one's own."""
        sizes, rank = self.processes.counts(len(x), x), self.processes.rank
        first = sum(sizes[:rank])
        return self.processes.gather(x, sizes), slice(first, first + len(x))

    def columns(self, observations: Observations) -> Observations:
        """Return the entries of this process's columns, with the values of these entries."""
        order, sizes = by_owner(observations.cols, self.ends[1])
        send = (observations.rows, observations.cols, observations.values, observations.weights)
        rows, cols, values, weights = (
            None if x is None else self.processes.exchange(x[order], sizes)[0] for x in send
        )
        assert rows is not None, "sent"
        assert cols is not None, "sent"
        assert values is not None, "sent"
        return bare(rows, cols, values, weights, observations.shape)

    def blocks(self, observations: Observations, side: Side) -> NoReturn:
        """Raise: rows are whole, and so are the columns of `columns`."""
        raise NotImplementedError("blocks are those of a CutPart")

    def column_counts(self, cols: Tensor) -> Tensor:
        """Return the number of entries of each column, of all processes."""
        return self.total(torch.bincount(cols, minlength=self.shape[1]))

    def share(
        self, observations: Observations, fraction: float, generator: torch.Generator | None
    ) -> tuple[Observations, Observations]:
        """Return what is left, and a random share of the entries, as parts.

        Whether an entry is taken depends on its row, its column and a number of the first process:
        not on the number of processes.

        Raises
        ------
        ObservationError
            If the share is not in (0, 1), or of no entry, or of all.
        """
        held = lot(self.processes, observations, fraction, generator)
        return self._some(observations, ~held), self._some(observations, held)

    def _some(self, observations: Observations, mask: Tensor) -> Observations:
        w, i, j = observations.weights, observations.rows[mask], observations.cols[mask]
        weights = None if w is None else w[mask]
        own = bare(i, j, observations.values[mask], weights, self.shape)
        return as_part(own, self.processes)

    def whole(self, observations: Observations) -> Observations:
        """Return all entries, in every process: by rows, in the order of each one's own."""
        sizes = self.processes.counts(len(observations), observations.values)
        send = (observations.rows, observations.cols, observations.values, observations.weights)
        rows, cols, values, weights = (
            None if x is None else self.processes.gather(x, sizes) for x in send
        )
        assert rows is not None, "sent"
        assert cols is not None, "sent"
        assert values is not None, "sent"
        return Observations(rows, cols, values, observations.shape, weights)


def lot(
    processes: Processes,
    observations: Observations,
    fraction: float,
    generator: torch.Generator | None,
    first: int = 0,
) -> Tensor:
    """Return which entries are held out, by their places and a number of the first process.

    Parameters
    ----------
    first : int
        The place of row zero in the matrix.

    Raises
    ------
    ObservationError
        If the share is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ObservationError(f"a share must be in (0, 1); got {fraction!r}")
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(2**62, (1,), generator=generator, device=device)
    seed = processes.from_first(drawn.to(observations.device))
    lots = mixed(mixed((observations.rows + first) ^ seed) ^ observations.cols) & (2**53 - 1)
    return lots < int(fraction * 2**53)


def check_any(own: Observations, processes: Processes) -> int:
    """Return the number of entries of all processes; some of them may have none.

    Raises
    ------
    ObservationError
        In all processes, if there is no entry, or none of positive weight.
    """
    # In all processes at once: one that raised alone would leave the others waiting.
    count = sum(processes.counts(len(own), own.values))
    if count == 0:
        raise ObservationError(
            "at least one entry must be observed; got none in any of the processes: take a larger "
            "share of the entries"
        )
    w = own.weights
    if w is not None and not bool(processes.largest((w > 0).any().double())):
        raise ObservationError(f"one weight at least must be positive; got {count} zeros")
    return count


def as_part(own: Observations, processes: Processes) -> Observations:
    """Return entries of this process's rows, with what they are a part of.

    Raises
    ------
    ObservationError
        As `check_any`.
    """
    return with_part(own, ProcessPart(processes, own.shape, check_any(own, processes)))


def with_part(own: Observations, part: Part[Observations]) -> Observations:
    """Return entries, with what they are a part of."""
    p = own.pattern
    pattern = SparsityPattern(p.rows, p.cols, p.shape, p.csr, part)
    return Observations.of_pattern(pattern, own.values, own.weights)


def cuts(size: int, parts: int) -> list[int]:
    """Return the ends of ranges of about equal length.

    Examples
    --------
    >>> cuts(10, 4)
    [0, 2, 5, 7, 10]
    """
    return [size * k // parts for k in range(parts + 1)]


def by_owner(index: Tensor, ends: list[int]) -> tuple[Tensor, list[int]]:
    """Return an order in which positions are sorted by the range they are in, and the counts.

    Examples
    --------
    >>> order, sizes = by_owner(torch.tensor([7, 0, 8, 1]), [0, 2, 5, 7, 10])
    >>> order.tolist(), sizes
    ([1, 3, 0, 2], [2, 0, 0, 2])
    """
    # Ends are ascending: the range is the number of inner ends at or below the position.
    inner = torch.tensor(ends[1:-1], dtype=index.dtype).to(index.device)
    owner = torch.bucketize(index, inner, right=True)
    sizes = torch.bincount(owner, minlength=len(ends) - 1).tolist()
    return owner.argsort(stable=True), sizes


def bare(
    rows: Tensor, cols: Tensor, values: Tensor, weights: Tensor | None, shape: tuple[int, int]
) -> Observations:
    """Return entries that were checked where they came from; there may be none."""
    pairs = sort_pairs(rows, cols, shape)
    return Observations.of_pattern(
        SparsityPattern.of_sorted(rows, cols, shape, pairs), values, weights
    )
