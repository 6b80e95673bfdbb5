"""In which order stochastic gradient steps visit the entries: the same on every device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.observations import Observations

Ints = NDArray[np.integer]

_GRID = 4
# Below this number of multiplications an epoch is over before a second thread has started.
_WORTH_A_GRID = 1 << 24


class Order(NamedTuple):
    """Entries by diagonals of a grid and blocks, and by rows within a block.

    Blocks on a diagonal share neither rows nor columns. The grid depends on the number of entries
    alone, so that results do not depend on threads.

    Parameters
    ----------
    entries : array, shape (nnz,)
        Positions among the observations.
    rows, cols : array, shape (nnz,)
        Of those, in this order.
    bounds : array, shape (g, g + 1)
        Where the blocks of each diagonal begin and end.

    Examples
    --------
    >>> order_of(Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1)), rank=1).bounds.tolist()
    [[0, 2]]
    """

    entries: Ints
    rows: Ints
    cols: Ints
    bounds: Ints


def order_of(observations: Observations, rank: int) -> Order:
    """Sort entries by diagonals and blocks, and by rows within a block; on the host."""
    g = _GRID if len(observations) * rank >= _WORTH_A_GRID else 1
    order, rows, cols = (
        x.cpu().numpy() for x in (observations.csr.order, observations.rows, observations.cols)
    )
    rows, cols = rows[order], cols[order]
    counts = (observations.row_counts, observations.col_counts)
    parts = [_parts(x.cpu().numpy(), g) for x in counts]
    block_row, block_col = parts[0][rows], parts[1][cols]
    key = ((block_col - block_row) % g) * g + block_row
    by_block = np.argsort(key, kind="stable")
    ends = np.searchsorted(key[by_block], np.arange(g * g + 1))
    bounds = np.stack([ends[d * g : (d + 1) * g + 1] for d in range(g)])
    return Order(order[by_block], rows[by_block], cols[by_block], bounds)


def _parts(counts: Ints, parts: int) -> Ints:
    """Return the part of each row: consecutive, of about equally many entries."""
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((middle * parts / max(counts.sum(), 1)).astype(np.int64), parts - 1)
