"""Numbers in [0, 1) that pairs of ids draw: the same pair, the same number, always."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.tables.ids import Ids, Labels

_WORD = 2**64
_ODD = np.uint64(0x9E3779B97F4A7C15)


def draws_of(rows: Ids, cols: Ids) -> NDArray[np.float64]:
    """Return a number for each pair of ids, as good as uniform and independent.

    Parameters
    ----------
    rows, cols : array, shape (k,)

    Returns
    -------
    array, shape (k,)
        In [0, 1).

    References
    ----------
    The mixing is that of SplitMix64: Steele, Lea and Flood (2014), figure 12.

    Examples
    --------
    >>> draws_of(np.array([1, 2]), np.array([5, 5])).round(3)
    array([0.465, 0.667])
    """
    x = _mixed(_mixed(_numbers(rows)) + _numbers(cols))
    return (x >> np.uint64(11)).astype(np.float64) / 2**53


def _numbers(ids: Ids) -> NDArray[np.uint64]:
    if ids.dtype.kind == "i":
        return ids.astype(np.int64).view(np.uint64)
    labels, positions = Labels.of(ids)
    return np.array([_number(x) for x in labels.to_ids()], dtype=np.uint64)[positions]


def _number(value: object) -> int:
    if type(value) is int:
        return value % _WORD
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=8).digest(), "little")


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _ODD
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
