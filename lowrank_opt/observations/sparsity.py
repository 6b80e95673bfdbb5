"""Where the observed entries are: index pairs, and their compressed rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowrank_opt.observations.part import Part

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
    order : Tensor, shape (nnz,), int64; of columns int32 where it fits
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
    csr : CompressedAxis
        The pairs by rows.
    part : Part, optional
        Of what, where other processes have the other pairs.

    Examples
    --------
    >>> rows, cols = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1])
    >>> pattern = SparsityPattern.of_sorted(rows, cols, (2, 3), sort_pairs(rows, cols, (2, 3)))
    >>> pattern.csr.pointers.tolist(), pattern.csr.indices.tolist()
    ([0, 1, 3], [2, 0, 1])
    """

    rows: Tensor
    cols: Tensor
    shape: tuple[int, int]
    csr: CompressedAxis
    part: Part[Any] | None = None

    @classmethod
    def of_sorted(
        cls, rows: Tensor, cols: Tensor, shape: tuple[int, int], pairs: SortedPairs
    ) -> SparsityPattern:
        """Return the pattern of distinct pairs whose sorted form is known."""
        m, n = shape
        pointers = _pointers(torch.bincount(rows, minlength=m))
        csr = CompressedAxis(pointers, as_short_index(pairs.cols, n), pairs.order)
        return cls(rows, cols, shape, csr)

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor]:
        """Number of entries of each row and of each column, those of other processes too."""
        rows = self.csr.counts
        if self.part is None:
            return rows, self.csc.counts
        return self.part.gather(rows[self.part.spans[0]], 0), self.part.column_counts(self.cols)

    @cached_property
    def csr_of_csc(self) -> Tensor:
        """Position in `csr` of each entry of `csc`, shape (nnz,), int32 where it fits."""
        # A stable sort by column keeps the rows ascending within a column.
        order = torch.sort(self.csr.indices, stable=True).indices
        return as_short_index(order, len(order))

    @cached_property
    def csc(self) -> CompressedAxis:
        """The pairs by columns."""
        m, n = self.shape
        rows = torch.arange(m, device=self.rows.device).repeat_interleave(self.csr.counts)
        indices = as_short_index(rows, m)[self.csr_of_csc]
        pointers = _pointers(torch.bincount(self.cols, minlength=n))
        order = self.csr.order[self.csr_of_csc]
        return CompressedAxis(pointers, indices, as_short_index(order, len(order)))

    def to(self, device: torch.device | str) -> SparsityPattern:
        """Return the pattern on another device, without sorting by row again."""
        if torch.device(device) == self.rows.device:
            return self
        csr = (self.csr.pointers, self.csr.indices, self.csr.order)
        rows, cols, *parts = (x.to(device) for x in (self.rows, self.cols, *csr))
        return SparsityPattern(rows, cols, self.shape, CompressedAxis(*parts), self.part)


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Index pairs sorted by row, then by column, and the stable permutation that does it.

    Parameters
    ----------
    rows, cols, order : Tensor, shape (nnz,), int64
    """

    rows: Tensor
    cols: Tensor
    order: Tensor

    @cached_property
    def repeated(self) -> Tensor:
        """Where a pair equals the one before it, shape (nnz - 1,), bool."""
        i, j = self.rows, self.cols
        return (i[1:] == i[:-1]) & (j[1:] == j[:-1])


def sort_pairs(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> SortedPairs:
    """Sort index pairs by row, then by column; equal pairs keep their order.

    Parameters
    ----------
    rows, cols : Tensor, shape (nnz,), int64
    shape : tuple of int
        ``(m, n)``; pairs are in range.
    """
    m, n = shape
    if m * n > torch.iinfo(torch.int64).max:
        by_col = torch.sort(cols, stable=True).indices
        order = by_col[torch.sort(rows[by_col], stable=True).indices]
        return SortedPairs(rows[order], cols[order], order)
    # The sorted keys give the sorted pairs back, without gathers at random places.
    keys, order = torch.sort(rows * n + cols, stable=True)
    sorted_rows = keys // n
    return SortedPairs(sorted_rows, keys.sub_(sorted_rows * n), order)


def as_short_index(index: Tensor, size: int) -> Tensor:
    """Return `index` as int32 if indices below `size` fit, else as int64."""
    return index.to(torch.int32 if size <= _INT32_MAX else torch.int64)


def _pointers(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
