"""What one of several processes, each with a part of the entries, knows of the others.

A part has the entries of consecutive rows, by the positions of the whole matrix. Nothing here knows
how processes talk; `lowrank_opt.distributed` does.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

E = TypeVar("E")

Side: TypeAlias = Literal[0, 1]


class Part(Protocol[E]):
    """What one of several processes knows of the others; every call is one for all of them."""

    @property
    def spans(self) -> tuple[slice, slice]:
        """Rows, and columns, that this process solves for."""
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

    def columns(self, observations: E) -> E:
        """Return the entries of this process's columns, values and weights of these entries."""
        ...

    def share(
        self, observations: E, fraction: float, generator: torch.Generator | None
    ) -> tuple[E, E]:
        """Return what is left, and a random share of the entries, as parts."""
        ...

    def whole(self, observations: E) -> E:
        """Return all entries, in every process."""
        ...
