"""Where the observed entries are: index pairs, and their compressed rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_INT32_MAX = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False)
class CompressedAxis:
    """Index pairs grouped by row (CSR) or by column (CSC), ascending within a group.

    Parameters
    ----------
    pointers : Tensor, shape (groups + 1,), int64
        Group i holds the entries ``pointers[i] .. pointers[i + 1] - 1``.
    indices : Tensor, shape (nnz,), int32 where the other axis fits, else int64
        The index on the other axis.
    order : Tensor, shape (nnz,), int64
        Position of each entry in the order in which the pairs were given.
    """

    pointers: Tensor
    indices: Tensor
    order: Tensor

    @property
    def counts(self) -> Tensor:
        """Number of entries of each group, shape (groups,)."""
        return self.pointers.diff()


@dataclass(frozen=True, eq=False)
class SparsityPattern:
    """Distinct index pairs of an m x n matrix, sorted once.

    Parameters
    ----------
    rows, cols : Tensor, shape (nnz,), int64
        In range and without duplicates; any order.
    shape : tuple of int
        ``(m, n)``.
    order : Tensor, shape (nnz,), int64
        The permutation that sorts the pairs by row, then by column.

    Examples
    --------
    >>> rows, cols = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1])
    >>> pattern = SparsityPattern(rows, cols, (2, 3), sort_pairs(rows, cols, (2, 3)))
    >>> pattern.csr.pointers.tolist(), pattern.csr.indices.tolist()
    ([0, 1, 3], [2, 0, 1])
    """

    rows: Tensor
    cols: Tensor
    shape: tuple[int, int]
    order: Tensor

    @cached_property
    def csr(self) -> CompressedAxis:
        """The pairs by rows."""
        m, n = self.shape
        indices = as_short_index(self.cols[self.order], n)
        return CompressedAxis(_pointers(self.rows, m), indices, self.order)

    @cached_property
    def csr_of_csc(self) -> Tensor:
        """Position in `csr` of each entry of `csc`, shape (nnz,)."""
        # A stable sort by column keeps the rows ascending within a column.
        order = torch.sort(self.csr.indices, stable=True).indices
        return as_short_index(order, len(order))

    @cached_property
    def csc(self) -> CompressedAxis:
        """The pairs by columns."""
        m, n = self.shape
        order = self.order[self.csr_of_csc]
        return CompressedAxis(_pointers(self.cols, n), as_short_index(self.rows[order], m), order)

    def to(self, device: torch.device | str) -> SparsityPattern:
        """Return the pattern on another device, without sorting again."""
        if torch.device(device) == self.rows.device:
            return self
        rows, cols, order = (x.to(device) for x in (self.rows, self.cols, self.order))
        return SparsityPattern(rows, cols, self.shape, order)


def sort_pairs(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the stable permutation that sorts pairs by row, then by column.

    Parameters
    ----------
    rows, cols : Tensor, shape (nnz,), int64
    shape : tuple of int
        ``(m, n)``; pairs are in range.

    Returns
    -------
    Tensor, shape (nnz,), int64
    """
    m, n = shape
    if m * n <= torch.iinfo(torch.int64).max:
        return torch.sort(rows * n + cols, stable=True).indices
    by_col = torch.sort(cols, stable=True).indices
    return by_col[torch.sort(rows[by_col], stable=True).indices]


def as_short_index(index: Tensor, size: int) -> Tensor:
    """Return `index` as int32 if indices below `size` fit, else as int64."""
    return index.to(torch.int32 if size <= _INT32_MAX else torch.int64)


def _pointers(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
