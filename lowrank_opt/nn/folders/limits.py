"""No more memory for what a file describes than what the file holds."""

from __future__ import annotations

import math

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_opt.errors import DataError

_FACTORIES = (
    "empty", "zeros", "ones", "full", "rand", "randn", "eye", "arange", "randint", "randperm",
    "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full", "linspace",
)  # fmt: skip

# Constructors may make several tensors to arrive at one, and small ones beside it.
_FACTOR, _FREE = 16, 1 << 16


class _Limited(TorchDispatchMode):
    def __init__(self, limit: int, what: str) -> None:
        super().__init__()
        self.limit: int
        self.what: str
        self.limit, self.what = limit, what

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.overloadpacket.__name__ in _FACTORIES:
            size = max(_sizes(args), default=0)
            if size > self.limit:
                raise DataError(
                    f"an adapter must not claim more than its file holds; {self.what} asks for a "
                    f"tensor of {size} numbers: it is damaged, fetch it again"
                )
        return func(*args, **(kwargs or {}))


def _sizes(args: tuple[object, ...]) -> list[int]:
    numbers = [int(x) for x in args if isinstance(x, int | float) and math.isfinite(x)]
    lists = [x for x in args if isinstance(x, list | tuple)]
    return [math.prod(max(1, x) for x in numbers), *(math.prod(x) for x in lists if x)]


def at_most(numbers: int, what: str) -> _Limited:
    """Return a context in which no tensor much larger than so many numbers is made.

    Raises
    ------
    DataError
        Inside the block, before memory is taken.

    Examples
    --------
    >>> import torch
    >>> with at_most(100, "a"):
    ...     torch.zeros(10, 10).shape
    torch.Size([10, 10])
    """
    return _Limited(_FACTOR * numbers + _FREE, what)
