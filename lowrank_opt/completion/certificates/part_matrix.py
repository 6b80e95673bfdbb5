"""A sparse matrix of whose entries each process has those of its rows: products meet in a sum.

What a bound needs of a matrix are a few products with narrow ones, the Gram matrix of its smaller
side, and sums over its entries. Each is a sum over processes, of no more numbers than its result
has; sums of sums are sums in some order, which is all that the error analyses assume.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Part

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PartMatrix:
    """A matrix, or its transpose, of the shape of all entries.

    Where rows are cut, its products have the lines of this process's rows, and those of its
    transpose take them; the Gram matrix is that of the columns alone.

    Parameters
    ----------
    rows : sparse array, shape (m, n)
        The entries of this process's rows; of shape (k, n) where rows are cut.
    cols : sparse array, shape (m, n), or None
        The entries of this process's columns; the same matrix once more. None where rows are cut.
    part : Part
    turned : bool
        Whether the transpose is meant.
    """

    rows: sp.csr_array
    cols: sp.csr_array | None
    part: Part[Observations]
    turned: bool = False

    # Products from the left are this one's.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix."""
        m, n = self.part.whole_shape
        return (n, m) if self.turned else (m, n)

    @property
    def cut(self) -> bool:
        """Whether products have lines of this process's rows alone."""
        return self.cols is None

    @property
    def T(self) -> PartMatrix:
        """The transpose."""
        return replace(self, turned=not self.turned)

    def __matmul__(self, x: Floats) -> Floats:
        """Return the product with an array or a sparse array, dense, in every process."""
        own = self.rows.T if self.turned else self.rows
        product = _dense(own @ x)
        return product if self.cut and not self.turned else self._total(product)

    def __mul__(self, factor: float) -> PartMatrix:
        """Return a multiple."""
        cols = None if self.cols is None else self.cols * factor
        return replace(self, rows=self.rows * factor, cols=cols)

    def __abs__(self) -> PartMatrix:
        """Return the moduli."""
        cols = None if self.cols is None else abs(self.cols)
        return replace(self, rows=abs(self.rows), cols=cols)

    def peak(self) -> float:
        """Return the largest modulus."""
        own = np.abs(self.rows.data).max(initial=0.0)
        return float(self.part.largest(torch.tensor(own, dtype=torch.float64)))

    def squares(self) -> float:
        """Return the sum of squares, of `count` terms in some order."""
        own = float(np.dot(self.rows.data, self.rows.data))
        return float(self.part.total(torch.tensor(own, dtype=torch.float64)))

    @property
    def count(self) -> int:
        """Number of entries."""
        return self.part.count

    def gram(self) -> Floats:
        """Return the Gram matrix of the columns."""
        own = self.rows
        if self.turned:
            assert self.cols is not None, "that of the columns, where rows are cut"
            own = self.cols.T
        return self._total(_dense(own.T @ own))

    def longest(self) -> tuple[int, int]:
        """Return the largest numbers of entries in a row and in a column."""
        by_row = self._largest(np.diff(self.rows.indptr).max(initial=0))
        if self.cols is None:
            counts = np.bincount(self.rows.indices, minlength=self.rows.shape[1])
            by_col = int(self._total(counts.astype(np.float64)).max(initial=0.0))
        else:
            by_col = self._largest(np.diff(self.cols.T.tocsr().indptr).max(initial=0))
        return (by_col, by_row) if self.turned else (by_row, by_col)

    def _largest(self, count: int) -> int:
        return int(self.part.largest(torch.tensor(int(count))))

    def _total(self, x: Floats) -> Floats:
        return self.part.total(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))).numpy()


def _dense(x: object) -> Floats:
    return x if isinstance(x, np.ndarray) else x.toarray()  # pyright: ignore
