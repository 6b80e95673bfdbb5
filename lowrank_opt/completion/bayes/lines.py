"""The rows (or columns) of one side of a sampler: their random numbers, and sums over all of them.

What is drawn for a row depends on the seed, on how often was drawn before, and on the row: not on
the process that has it, nor on what the other rows need.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Side
from lowrank_opt.observations.parts import over_lines, whole_lines

Floats = NDArray[np.floating]

# Rows whose numbers come from one stream; a process draws at most two blocks of rows for nothing.
BLOCK = 1 << 12


class Lines:
    """Rows (or columns), of which this process may have some.

    Parameters
    ----------
    observations : Observations
    side : {0, 1}
        Rows or columns.
    rng : numpy.random.Generator
        In the same state in all processes; each draw takes one number of it.

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> rows = Lines(obs, 0, np.random.default_rng(0))
    >>> rows.normal(3, np.float32).shape, rows.gamma(np.array([2.0, 0.5])).shape
    ((2, 3), (2,))
    """

    def __init__(self, observations: Observations, side: Side, rng: np.random.Generator) -> None:
        self.observations: Observations
        self.side: Side
        self.rng: np.random.Generator
        self.size: int
        self.held: slice
        self.observations, self.side, self.rng = observations, side, rng
        sizes, held = whole_lines(observations)
        self.size, self.held = sizes[side], held[side]

    def total(self, x: Floats) -> Floats:
        """Return a sum over all rows from that over those of this process, in every process."""
        return over_lines(self.observations, torch.from_numpy(x), self.side).cpu().numpy()

    def normal(self, width: int, dtype: type[np.floating]) -> Floats:
        """Return standard normal numbers for the rows of this process."""
        kind = np.dtype(dtype)
        found = [
            stream.standard_normal((count, width), kind)[mine]
            for stream, count, mine in self._streams()
        ]
        return np.concatenate([np.empty((0, width), kind), *found])

    def gamma(self, shape: Floats) -> Floats:
        """Return standard Gamma numbers for the rows of this process, of a given shape each.

        The k-th proposal for a row is the k-th of its block, whichever rows have taken theirs.

        References
        ----------
        Marsaglia and Tsang (2000), A simple method for generating gamma variables, with their
        section 6 for shapes below one.
        """
        found, done = np.empty(len(shape)), 0
        for stream, count, mine in self._streams():
            here = slice(done, done + mine.stop - mine.start)
            found[here], done = _gamma(stream, count, mine, shape[here]), here.stop
        return found

    def _streams(self) -> Iterator[tuple[np.random.Generator, int, slice]]:
        """Yield the stream of each block, how many rows it has, and which of them are here."""
        key = int(self.rng.integers(2**63))
        for first in range(self.held.start // BLOCK * BLOCK, self.held.stop, BLOCK):
            count = min(BLOCK, self.size - first)
            mine = slice(max(self.held.start - first, 0), min(self.held.stop - first, count))
            bits = np.random.Philox(key=key, counter=[0, 0, 0, first // BLOCK])
            yield np.random.Generator(bits), count, mine


def _gamma(stream: np.random.Generator, count: int, mine: slice, shape: Floats) -> Floats:
    small = shape < 1
    d = np.where(small, shape + 1, shape) - 1 / 3
    c, found = 1 / np.sqrt(9 * d), np.empty(len(shape))
    # A power of a uniform number, in (0, 1].
    power = 1 - stream.random(count)[mine]
    left = np.arange(len(shape))
    while len(left) > 0:
        z, u = stream.standard_normal(count)[mine][left], 1 - stream.random(count)[mine][left]
        d_, v = d[left], (1 + c[left] * z) ** 3
        positive = v > 0
        log_v = np.log(np.where(positive, v, 1.0))
        taken = positive & (np.log(u) < z**2 / 2 + d_ * (1 - v + log_v))
        found[left[taken]], left = (d_ * v)[taken], left[~taken]
    found[small] *= power[small] ** (1 / shape[small])
    return found
