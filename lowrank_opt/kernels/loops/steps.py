"""Numba loop of stochastic gradient steps over entries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.loops.compiler import njit
from lowrank_opt.kernels.step_order import order_of
from lowrank_opt.observations import Observations

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_FASTMATH = {"reassoc", "contract"}


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
class LoopSteps:
    """Entries in blocks; those on a diagonal share neither rows nor columns, a thread takes each.

    Parameters
    ----------
    rows, cols : array, shape (nnz,), int32
    values, weights : array, shape (nnz,)
    bounds : array, shape (g, g + 1)
        Where the blocks of each diagonal begin and end.
    """

    rows: Ints
    cols: Ints
    values: Floats
    weights: Floats
    bounds: Ints

    def epoch(
        self,
        factors: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        *,
        rate: float,
        penalty: float,
    ) -> float:
        """Take one step for each entry; return the weighted squared residuals met on the way.

        Parameters
        ----------
        factors, biases : pair of Tensor, written
            Of rows and of columns.
        rate, penalty : float
        """
        entries = (self.rows, self.cols, self.values, self.weights)
        rest = (*entries, *(x.numpy() for x in (*factors, *biases)), rate, penalty)
        threads, loss = min(torch.get_num_threads(), len(self.bounds)), 0.0
        with ThreadPoolExecutor(threads) as pool:
            for ends in self.bounds:
                calls = [(*block, *rest) for block in pairwise(ends.tolist())]
                loss += sum(pool.map(lambda call: _steps(*call), calls))
        return loss


def steps(observations: Observations, rank: int) -> LoopSteps:
    """Return the steps over the entries, as `Backend.steps`."""
    order = order_of(observations, rank)
    entries = torch.from_numpy(order.entries)
    values, w = observations.values[entries].numpy(), observations.weights
    weights = np.ones_like(values) if w is None else w[entries].numpy()
    wide = max(observations.shape) > np.iinfo(np.int32).max
    rows, cols = (x.astype(np.int64 if wide else np.int32) for x in (order.rows, order.cols))
    return LoopSteps(rows, cols, values, weights, order.bounds)
