"""Stochastic gradient steps in plain torch, as many at a time as share neither row nor column.

Steps in one order depend on each other only through their rows and columns. In waves, each of the
entries that come next in both their row and their column, every entry sees the factors that it
would see in the order itself: the result is that of one step after the other, to rounding. There
are at least as many waves as entries in the longest row or column, and about m + n on sparse data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.step_order import order_of
from lowrank_opt.observations import Observations

Ints = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class WaveSteps:
    """Entries wave after wave.

    Parameters
    ----------
    rows, cols : Tensor, shape (nnz,)
    values, weights : Tensor, shape (nnz,)
    bounds : list of int
        Where the waves begin, and the last one ends.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    weights: Tensor
    bounds: list[int]

    def epoch(
        self,
        factors: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        *,
        rate: float,
        penalty: float,
    ) -> float:
        """Take one step for each entry, as the loop of the CPU does in its order."""
        (left, right), (row_bias, col_bias) = factors, biases
        loss = left.new_zeros((), dtype=torch.float64)
        sizes = [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        entries = (self.rows, self.cols, self.values, self.weights)
        for i, j, y, w in zip(*(x.split(sizes) for x in entries), strict=True):
            u, v, a, c = left[i], right[j], row_bias[i], col_bias[j]
            e = y - (u * v).sum(1) - a - c
            loss += torch.dot(w.double() * e.double(), e.double())
            # A step never overshoots the residual, whatever the weight and the sizes of factors.
            pace = rate * w
            step = pace * e / (1 + pace * (u.square().sum(1) + v.square().sum(1) + 2))
            keep = 1 / (1 + penalty * pace)
            row_bias[i], col_bias[j] = keep * a + step, keep * c + step
            keep, step = keep.unsqueeze(1), step.unsqueeze(1)
            left[i], right[j] = keep * u + step * v, keep * v + step * u
        return float(loss)


def steps(observations: Observations, rank: int) -> WaveSteps:
    """Return the steps over the entries, as `Backend.steps`."""
    order, device = order_of(observations, rank), observations.device
    waves = _waves(order.rows, order.cols)
    by_wave = np.argsort(waves, kind="stable")
    bounds = np.searchsorted(waves[by_wave], np.arange(int(waves.max()) + 2)).tolist()
    entries = torch.from_numpy(order.entries[by_wave]).to(device)
    w = observations.weights
    values = observations.values[entries]
    weights = torch.ones_like(values) if w is None else w[entries]
    return WaveSteps(
        observations.rows[entries], observations.cols[entries], values, weights, bounds
    )


def _waves(rows: Ints, cols: Ints) -> Ints:
    """Return the wave of each entry: one after the later of the waves before it in row and column.

    Examples
    --------
    >>> _waves(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])).tolist()
    [0, 1, 1, 2]
    """
    waves, nexts = np.zeros(len(rows), dtype=np.int64), (_next(rows), _next(cols))
    waiting = np.zeros(len(rows), dtype=np.int8)
    for after in nexts:
        waiting[after[after >= 0]] += 1
    ready, wave = np.flatnonzero(waiting == 0), 0
    while len(ready) > 0:
        waves[ready] = wave
        found = np.concatenate([after[ready] for after in nexts])
        # An entry may come next in its row and in its column at once.
        np.subtract.at(waiting, found[found >= 0], 1)
        found = np.unique(found[found >= 0])
        ready, wave = found[waiting[found] == 0], wave + 1
    return waves


def _next(index: Ints) -> Ints:
    """Return for each entry the next one with the same index, or -1."""
    order = np.argsort(index, kind="stable")
    after = np.full(len(index), -1, dtype=np.int64)
    same = index[order[1:]] == index[order[:-1]]
    after[order[:-1][same]] = order[1:][same]
    return after
