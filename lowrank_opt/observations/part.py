"""What one of several processes, each with a part of the entries, knows of the others.

A part has the entries of consecutive rows. Rows have the positions of the whole matrix, and what
belongs to rows is whole in every process; or they are cut: numbered from zero in each process,
which has what belongs to its own rows alone. Columns may be cut besides: entries name them by the
positions of the whole matrix, and each process has what belongs to some of them. Nothing here
knows how processes talk; `lowrank_opt.distributed` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

Side: TypeAlias = Literal[0, 1]
SIDES: tuple[Side, Side] = (0, 1)


class Block(Protocol[E_co]):
    """Some of the columns that a process solves for, where rows are cut; or rows, for columns."""

    @property
    def entries(self) -> E_co | None:
        """Those of c columns, in the d rows that have some; None if there are no columns left."""
        ...

    @property
    def at(self) -> slice:
        """Which columns they are, among those of this process."""
        ...

    @property
    def places(self) -> Tensor:
        """Where its entries are among those that blocks were made of."""
        ...

    def fetch(self, x: Tensor) -> Tensor:
        """Return the lines of the d rows, of which every process has those of its own rows."""
        ...

    def give_back(self, lines: Tensor, to: Tensor) -> None:
        """Add lines of the d rows to those of whom `fetch` has them from."""
        ...


class Part(Protocol[E]):
    """What one of several processes knows of the others; every call is one for all of them."""

    @property
    def cut(self) -> bool:
        """Whether rows are numbered from zero in each process."""
        ...

    @property
    def cut_columns(self) -> bool:
        """Whether each process has numbers of its own columns alone."""
        ...

    @property
    def whole_shape(self) -> tuple[int, int]:
        """The shape of the whole matrix."""
        ...

    @property
    def held(self) -> tuple[slice, slice]:
        """Rows, and columns, of the whole matrix that this process has numbers of its own for."""
        ...

    @property
    def spans(self) -> tuple[slice, slice]:
        """Rows, and columns, that this process solves for, among those."""
        ...

    @property
    def count(self) -> int:
        """Number of entries in all parts together."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes; its gradient is that of each one's own."""
        ...

    def shared(self, x: Tensor) -> Tensor:
        """Return a tensor that all processes have; its gradient is the sum of theirs."""
        ...

    def largest(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over the processes."""
        ...

    def gather(self, x: Tensor, side: Side) -> Tensor:
        """Return lines of all rows (or columns), of which this process has those of its span."""
        ...

    def stacked(self, x: Tensor) -> tuple[Tensor, slice]:
        """Return the lines of all processes, however many each has, and which are one's own."""
        ...

    def columns(self, observations: E) -> E:
        """Return the entries of this process's columns, values and weights of these entries."""
        ...

    def blocks(self, observations: E, side: Side) -> Sequence[Block[E]]:
        """Return the entries of this process's columns, a few at a time; where rows are cut.

        On the side 0, those of its rows; where columns are.
        """
        ...

    def column_counts(self, cols: Tensor) -> Tensor:
        """Return the number of entries of each column that is held; `cols` of one's own entries."""
        ...

    def share(
        self, observations: E, fraction: float, generator: torch.Generator | None
    ) -> tuple[E, E]:
        """Return what is left, and a random share of the entries, as parts."""
        ...

    def whole(self, observations: E) -> E:
        """Return all entries, in every process."""
        ...
