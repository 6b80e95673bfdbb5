"""Bytes that a pass of the Triton kernels moves, if nothing is found in a cache.

Each entry brings the line of its other side, its index and its numbers; each group its own line,
and where its entries are. That is what a time is compared with, as a share of the rate of a copy.
Groups in pieces move a line more for each piece, which is not counted, nor is the prior of a row.
"""

from __future__ import annotations

from typing import NamedTuple

# Bytes of an index, and of a position, number or loss that is kept in 64 bits.
_INDEX, _WIDE = 4, 8


class Sizes(NamedTuple):
    """What the cost depends on; there are no biases.

    Parameters
    ----------
    entries, rows, cols : int
    width : int
        Numbers of a line, padded.
    number : int
        Bytes of a number of the right factor, which is gathered by rows: 2, 4 or 8.
    summed : int
        Bytes of all other numbers: 4 or 8.
    weighted : bool
    """

    entries: int
    rows: int
    cols: int
    width: int
    number: int = 4
    summed: int = 4
    weighted: bool = False

    @property
    def values(self) -> int:
        """Bytes of value and weight of an entry."""
        return self.summed * (2 if self.weighted else 1)


def loss(s: Sizes) -> int:
    """Return the bytes of the loss alone.

    Examples
    --------
    >>> loss(Sizes(entries=100, rows=10, cols=5, width=8))
    4720
    """
    each = s.width * s.number + _INDEX + s.values
    return s.entries * each + s.rows * (s.width * s.summed + 5 * _WIDE)


def loss_and_gradient(s: Sizes) -> int:
    """Return the bytes of the loss and both gradients: residuals are written once and read once.

    Examples
    --------
    >>> loss_and_gradient(Sizes(entries=100, rows=10, cols=5, width=8))
    10180
    """
    by_rows = s.entries * s.summed + s.rows * (s.width + 1) * s.summed
    return loss(s) + by_rows + products(s, s.entries, s.cols, s.width, s.summed, positions=True)


def products(
    s: Sizes, entries: int, groups: int, width: int, number: int, *, positions: bool
) -> int:
    """Return the bytes of the sums over groups of lines of so many numbers of so many bytes."""
    each = width * number + _INDEX * (2 if positions else 1) + s.summed
    return entries * each + groups * ((width + 1) * s.summed + 3 * _WIDE)


def half_sweep(s: Sizes) -> int:
    """Return the bytes of normal equations of all rows, and of the losses at their solutions.

    Examples
    --------
    >>> half_sweep(Sizes(entries=100, rows=10, cols=5, width=8))
    10170
    """
    each = s.width * s.number + _INDEX + s.values + s.summed
    solved = s.rows * (s.width * s.summed + 4 * _WIDE + 1)
    return s.entries * each + solved + loss(s) + s.entries * s.summed


def posterior(s: Sizes) -> int:
    """Return the bytes of Gaussian posteriors of all rows but for their small systems.

    The width is that of the means: factors, the constant one and the bias.

    Examples
    --------
    >>> posterior(Sizes(entries=100, rows=10, cols=5, width=8))
    26720
    """
    lines = (s.width * (s.width + 1) // 2, s.width)
    sums = (products(s, s.entries, s.rows, k, s.number, positions=False) for k in lines)
    return sum(sums) + loss(s._replace(weighted=True)) + s.rows * _WIDE
