"""A guard that raises where an m x n tensor is allocated although only factors are allowed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_opt.errors import DenseMaterializationError, ShapeError


class HasShape(Protocol):
    """Anything with ``shape == (m, n)``: an operator, a parameterization, an array."""

    @property
    def shape(self) -> Sequence[int]:
        """The numbers of rows and columns."""
        ...


@contextmanager
def forbid_dense(shape: Sequence[int] | HasShape) -> Generator[None]:
    """Raise when a torch operation allocates as many numbers as an m x n matrix has.

    The exact rule: an operation is refused if one of its results lives in a storage that none of
    its arguments has and that holds at least ``m * n`` elements of the result's dtype. Views,
    ``expand`` and writes into tensors that exist already allocate nothing and pass; a dense matrix
    in any disguise (transposed, flattened, batched, in another dtype) does not. Backward passes
    are watched too. Not seen: workspaces inside a kernel, and numpy or scipy.

    The rule counts elements, so it is meant for shapes whose factors are much smaller than the
    matrix: (m + n) r < m n, say 97 x 89 with rank 3, and batches of fewer than min(m, n) vectors.

    Parameters
    ----------
    shape : tuple of int, or an object with such a ``shape``
        ``(m, n)``; a `LowRankOperator` or a parameterization may be given itself.

    Raises
    ------
    ShapeError
        If `shape` is not two positive integers.
    DenseMaterializationError
        Inside the block, from the operation that allocates.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import LowRankOperator
    >>> op = LowRankOperator(torch.ones(97, 3), torch.ones(3), torch.ones(89, 3))
    >>> with forbid_dense(op):
    ...     y = op @ torch.ones(89)
    >>> with forbid_dense(op):
    ...     op.to_dense()
    Traceback (most recent call last):
    ...
    lowrank_opt.errors.DenseMaterializationError: no 8633 or more elements may be allocated for ...
    """
    sizes = tuple(shape.shape if hasattr(shape, "shape") else shape)  # pyright: ignore
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ShapeError(f"forbid_dense needs two positive integers (rows, columns); got {sizes!r}")
    with _DenseGuard(*sizes):
        yield


class _DenseGuard(TorchDispatchMode):
    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.m, self.n = m, n

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        known = {_storage(x) for x in _tensors((args, kwargs))}
        for x in _tensors(result):
            if _stored_elements(x) >= self.m * self.n and _storage(x) not in known:
                raise DenseMaterializationError(
                    f"no {self.m * self.n} or more elements may be allocated for a "
                    f"{self.m} x {self.n} matrix; {func} returned {tuple(x.shape)}: "
                    "work with the factors"
                )
        return result


def _tensors(tree: object) -> list[Tensor]:
    # A sparse result has no storage of its own: its parts came from operations seen before.
    leaves = pytree.tree_leaves(tree)
    return [x for x in leaves if isinstance(x, Tensor) and x.layout == torch.strided]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _stored_elements(x: Tensor) -> int:
    return x.untyped_storage().nbytes() // x.element_size()
