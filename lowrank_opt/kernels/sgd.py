"""Numba loop of stochastic gradient steps over entries, and the order it takes them in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from lowrank_opt.observations import Observations

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_FASTMATH = {"reassoc", "contract"}
_GRID = 4
# Below this number of multiplications an epoch is over before a second thread has started.
_WORTH_A_GRID = 1 << 24


@njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _steps(
    first: int,
    last: int,
    rows: Ints,
    cols: Ints,
    values: Floats,
    weights: Floats,
    left: Floats,
    right: Floats,
    row_bias: Floats,
    col_bias: Floats,
    rate: float,
    penalty: float,
) -> float:
    """Take one step for each entry; return the weighted squared residuals before them."""
    loss = 0.0
    rank = left.shape[1]
    for k in range(first, last):
        i, j, w = rows[k], cols[k], weights[k]
        u, v = left[i], right[j]
        uv, uu, vv = left.dtype.type(0), left.dtype.type(0), left.dtype.type(0)
        for q in range(rank):
            uv += u[q] * v[q]
            uu += u[q] * u[q]
            vv += v[q] * v[q]
        e = values[k] - uv - row_bias[i] - col_bias[j]
        loss += np.float64(w) * e * e
        # A step never overshoots the residual, whatever the weight and the sizes of the factors.
        pace = rate * w
        step = left.dtype.type(pace * e / (1 + pace * (uu + vv + 2)))
        keep = left.dtype.type(1 / (1 + rate * w * penalty))
        row_bias[i] = keep * row_bias[i] + step
        col_bias[j] = keep * col_bias[j] + step
        for q in range(rank):
            x, y = u[q], v[q]
            u[q] = keep * x + step * y
            v[q] = keep * y + step * x
    return loss


@dataclass(frozen=True, eq=False)
class StepOrder:
    """Entries in blocks of rows and columns; blocks on a diagonal share neither.

    The grid depends on the number of entries alone and a block is worked through by one thread, so
    that results do not depend on the number of threads.

    Parameters
    ----------
    rows, cols : array, shape (nnz,)
    values, weights : array, shape (nnz,)
    bounds : array, shape (g, g + 1)
        Where the blocks of each diagonal begin and end.

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> StepOrder.of(obs, rank=1).bounds.tolist()
    [[0, 2]]
    """

    rows: Ints
    cols: Ints
    values: Floats
    weights: Floats
    bounds: Ints

    @classmethod
    def of(cls, observations: Observations, rank: int) -> StepOrder:
        """Sort entries by diagonals and blocks, and by rows within a block."""
        g = _GRID if len(observations) * rank >= _WORTH_A_GRID else 1
        order = observations.csr.order
        positions = (observations.rows, observations.cols)
        rows, cols = (x[order].numpy().astype(np.int32) for x in positions)
        parts = [_parts(x.numpy(), g) for x in (observations.row_counts, observations.col_counts)]
        block_row, block_col = parts[0][rows], parts[1][cols]
        key = ((block_col - block_row) % g) * g + block_row
        by_block = np.argsort(key, kind="stable")
        ends = np.searchsorted(key[by_block], np.arange(g * g + 1))
        bounds = np.stack([ends[d * g : (d + 1) * g + 1] for d in range(g)])
        values = observations.values[order].numpy()[by_block]
        w = observations.weights
        weights = np.ones_like(values) if w is None else w[order].numpy()[by_block]
        return cls(rows[by_block], cols[by_block], values, weights, bounds)

    def epoch(
        self, factors: tuple[Floats, Floats], biases: tuple[Floats, Floats], **settings: float
    ) -> float:
        """Take one step for each entry; return the weighted squared residuals met on the way.

        Parameters
        ----------
        factors, biases : pair of arrays, written
            Of rows and of columns.
        **settings : float
            `rate` and `penalty`.
        """
        entries = (self.rows, self.cols, self.values, self.weights)
        rest = (*entries, *factors, *biases, settings["rate"], settings["penalty"])
        threads, loss = min(torch.get_num_threads(), len(self.bounds)), 0.0
        with ThreadPoolExecutor(threads) as pool:
            for ends in self.bounds:
                calls = [(*block, *rest) for block in pairwise(ends.tolist())]
                loss += sum(pool.map(lambda call: _steps(*call), calls))
        return loss


def _parts(counts: Ints, parts: int) -> Ints:
    """Return the part of each row: consecutive, of about equally many entries."""
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((middle * parts / max(counts.sum(), 1)).astype(np.int64), parts - 1)
