"""Sums over entries of which a process may have some, and others the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lowrank_opt.observations.observations import Observations


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
    """Return the largest of one number for each entry, over all processes."""
    return x.max() if observations.part is None else observations.part.largest(x.max())


def entry_count(observations: Observations) -> int:
    """Return the number of entries, over all processes."""
    return len(observations) if observations.part is None else observations.part.count


def whole(observations: Observations) -> Observations:
    """Return all entries: those of the other processes too."""
    return observations if observations.part is None else observations.part.whole(observations)


def shared(observations: Observations, x: Tensor) -> Tensor:
    """Return a tensor that all processes have, such that its gradient counts all their entries."""
    return x if observations.part is None else observations.part.shared(x)
