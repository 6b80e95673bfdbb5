"""Whether tensors hold the numbers that they held: by their memory, where that tells."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn

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
_PLAIN = (Tensor, nn.Parameter)
# Formats of unsigned words, by bytes.
_WORDS: Mapping[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def is_legible(x: Tensor) -> bool:
    """Whether the memory of a tensor, on the CPU, is its numbers, with nothing still to be done."""
    plain = type(x) in _PLAIN and x.is_cpu and x.layout is torch.strided
    return plain and not (x.is_neg() or x.is_conj())


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


def is_same_view(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one dtype stand in the same memory, entry by entry.

    Parameters
    ----------
    x, y : Tensor
        Strided.

    Examples
    --------
    >>> x = torch.ones(2, 2)
    >>> is_same_view(x, x.detach()), is_same_view(x, x.mT), is_same_view(x, x.clone())
    (True, False, False)
    """
    return (
        x.untyped_storage()._cdata == y.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        and x.storage_offset() == y.storage_offset()
        and x.shape == y.shape
        and x.stride() == y.stride()
    )


class Copy:
    """The numbers that a tensor had, wherever they stood.

    Parameters
    ----------
    x : Tensor
        Which `is_legible`.

    Examples
    --------
    >>> x = torch.ones(2, 3)
    >>> copy = Copy(x)
    >>> x.data[1, 2] = 5.0
    >>> copy.is_of(x), copy.is_of(torch.ones(2, 3))
    (False, True)
    """

    def __init__(self, x: Tensor) -> None:
        numbers = x.detach().clone()
        self._dtype, self._shape, self._strides = x.dtype, x.shape, numbers.stride()
        # Strides of a clone leave no gaps: what has them is one piece of memory.
        self._then = bytearray(_memory(numbers))
        # Together: another thread finds both or neither.
        self._at = x.data_ptr(), _memory(x)

    def is_of(self, x: Tensor) -> bool:
        """Whether a tensor has the dtype, the shape and the numbers; all of them are looked at."""
        if x.dtype is not self._dtype or x.shape != self._shape or not is_legible(x):
            return False
        if x.stride() != self._strides:
            numbers = torch.empty_strided(self._shape, self._strides, dtype=self._dtype)
            _memory(numbers)[:] = bytes(self._then)
            return torch.equal(x, numbers)
        place, now = self._at
        if x.data_ptr() != place:
            place, now = self._at = x.data_ptr(), _memory(x)
        return self._then == now


class Glance:
    """What tells at a glance that a large tensor is no longer what it was.

    That it is another, or stands elsewhere; that torch's counter of writes went on; and, since no
    counter knows of writes through ``.data``, one number of every row: whoever scales, loads, fills
    or moves a weight, or a row of it, changes some of them. A write past the counter that leaves
    these as they are is not seen.

    Parameters
    ----------
    x : Tensor
        Which `can_be_told`.

    Examples
    --------
    >>> x = torch.ones(2, 3)
    >>> glance = Glance(x)
    >>> x.data.mul_(2)
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    >>> glance.is_of(x)
    False
    """

    def __init__(self, x: Tensor) -> None:
        self._tensor = ref(x)
        self._facts = self._facts_of(x)
        self._read = _reader(x)
        self._known = memoryview(bytes(self._read)).cast(_WORDS[min(x.itemsize, 8)])

    @staticmethod
    def can_be_told(x: Tensor) -> bool:
        """Whether a tensor is one: a matrix, row by row in memory, with a counter of writes."""
        return is_legible(x) and x.is_contiguous() and x.ndim > 1 and not x.is_inference()

    def is_of(self, x: Tensor) -> bool:
        """Whether a tensor seems to be what it was."""
        return (
            self._tensor() is x
            and self.can_be_told(x)
            and self._facts == self._facts_of(x)
            # The memory is the tensor's, which stands where it stood.
            and self._read == self._known
        )

    @staticmethod
    def _facts_of(x: Tensor) -> tuple[object, ...]:
        return x._version, x.data_ptr(), x.dtype, x.shape


def _memory(x: Tensor) -> ctypes.Array[ctypes.c_char]:
    """Return the memory of a tensor without gaps; to be read only while it stands there."""
    return (ctypes.c_char * x.nbytes).from_address(x.data_ptr())


def _reader(x: Tensor) -> memoryview:
    """Return a look at one number of every row, in place: without torch, and holding nothing.

    It may be read only while the tensor lives and has that memory.
    """
    size = x.itemsize
    # Words of eight bytes are enough of wider numbers to tell.
    words, form = max(1, size // 8), _WORDS[min(size, 8)]
    # One step less than a row: from row to row the next column.
    return memoryview(_memory(x)).cast("B").cast(form)[:: words * max(1, x.shape[-1] - 1)]
