"""Sums over entries of which a process may have some, and others the rest."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError
from lowrank_opt.observations.part import Side

if TYPE_CHECKING:
    from lowrank_opt.observations.observations import Observations


class _Agreeing(Protocol):
    def largest(self, x: Tensor) -> Tensor: ...


def total(observations: Observations, x: Tensor) -> Tensor:
    """Return the sum of one number for each entry, over all processes, a float64 scalar.

    Examples
    --------
    >>> from lowrank_opt.observations import Observations
    >>> float(total(Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2)), torch.ones(2)))
    2.0
    """
    part, here = observations.part, x.sum(dtype=torch.float64)
    return here if part is None else part.total(here)


def largest(observations: Observations, x: Tensor) -> Tensor:
    """Return the largest of one nonnegative number for each entry, over all processes."""
    if observations.part is None:
        return x.max()
    # A process may have no entries.
    return observations.part.largest(x.max() if len(x) > 0 else x.new_zeros(()))


@contextmanager
def together(part: _Agreeing | None) -> Generator[None]:
    """Raise an error of the block in every process, if it is raised in one.

    One that raised alone would leave the others waiting. What the block asks of all processes, it
    asks before it raises.

    Parameters
    ----------
    part : Part or Processes, or None
        None if there is one process.

    Raises
    ------
    ObservationError
        As the block, or that of another process.
    """
    error = None
    try:
        yield
    except ObservationError as raised:
        if part is None:
            raise
        error = raised
    if part is not None and bool(part.largest(torch.tensor(float(error is not None)))):
        raise error or ObservationError(
            "entries must be usable in every process; got an error in another one: see its message"
        )


def all_finite(observations: Observations, x: Tensor) -> bool:
    """Return whether one number for each entry is finite, in all processes."""
    return not bool(largest(observations, (~torch.isfinite(x)).double()))


def distinct(observations: Observations, x: Tensor, most: int) -> Tensor:
    """Return the distinct ones of one number for each entry, over all processes, ascending.

    Of more than `most`, one more than so many.

    Examples
    --------
    >>> from lowrank_opt.observations import Observations
    >>> obs = Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))
    >>> distinct(obs, obs.values, 100)
    tensor([1., 3.])
    """
    own = x.unique()
    part, found = observations.part, list[Tensor]()
    if part is None:
        return own[: most + 1]
    while len(found) <= most:
        # The largest that is not found yet, in any process.
        top = part.largest(own[-1] if len(own) > 0 else x.new_tensor(-torch.inf))
        if top == -torch.inf:
            break
        found.append(top)
        own = own[own < top]
    return torch.stack(found[::-1])


def entry_count(observations: Observations) -> int:
    """Return the number of entries, over all processes."""
    return len(observations) if observations.part is None else observations.part.count


def whole(observations: Observations) -> Observations:
    """Return all entries: those of the other processes too."""
    return observations if observations.part is None else observations.part.whole(observations)


def shared(observations: Observations, x: Tensor) -> Tensor:
    """Return a tensor that all processes have, such that its gradient counts all their entries."""
    return x if observations.part is None else observations.part.shared(x)


def whole_shape(observations: Observations) -> tuple[int, int]:
    """Return the shape of the matrix, the rows of other processes included."""
    return observations.shape if observations.part is None else observations.part.whole_shape


def held_shape(observations: Observations) -> tuple[int, int]:
    """Return of how many rows and columns this process has numbers."""
    rows, cols = whole_lines(observations)[1]
    return rows.stop - rows.start, cols.stop - cols.start


def is_cut(observations: Observations, side: Side = 0) -> bool:
    """Return whether there are rows (or columns) that other processes alone have numbers of."""
    part = observations.part
    return part is not None and (part.cut_columns if side else part.cut)


def over_lines(observations: Observations, x: Tensor, side: Side) -> Tensor:
    """Return a sum over all rows (or columns) from the sum over those that this process has."""
    part = observations.part
    return part.total(x) if part is not None and is_cut(observations, side) else x


def whole_lines(
    observations: Observations,
) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Return the shape of the matrix, and which of its rows and columns there are here."""
    m, n = whole_shape(observations)
    part = observations.part
    return (m, n), (slice(0, m), slice(0, n)) if part is None else part.held
