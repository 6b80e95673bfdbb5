"""Numbers that depend on entries and not on the process that has them."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.observations import Observations


def checksum(observations: Observations) -> int:
    """Return a digest of entries, values and weights, whatever process has them.

    For the settings of a `Checkpoint`: the same on another number of processes.
    """
    values = observations.values.double().view(torch.int64)
    w = observations.weights
    weights = torch.zeros_like(values) if w is None else w.double().view(torch.int64)
    found = torch.zeros_like(values)
    part = observations.part
    rows = observations.rows + (0 if part is None else part.held[0].start)
    for x in (rows, observations.cols, values, weights):
        found = mixed(found ^ x)
    here = found.sum()
    return int(here if part is None else part.total(here))


def mixed(x: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 with the odd constants of its author, as int64."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))
