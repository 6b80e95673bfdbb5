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

    Parameters
    ----------
    rows : sparse array, shape (m, n)
        The entries of this process's rows.
    cols : sparse array, shape (m, n)
        The entries of this process's columns; the same matrix once more.
    part : Part
    turned : bool
        Whether the transpose is meant.
    """

    rows: sp.csr_array
    cols: sp.csr_array
    part: Part[Observations]
    turned: bool = False

    # Products from the left are this one's.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix."""
        m, n = self.rows.shape
        return (n, m) if self.turned else (m, n)

    @property
    def T(self) -> PartMatrix:
        """The transpose."""
        return replace(self, turned=not self.turned)

    def __matmul__(self, x: Floats) -> Floats:
        """Return the product with an array or a sparse array, dense, in every process."""
        own = self.rows.T if self.turned else self.rows
        return self._total(_dense(own @ x))

    def __mul__(self, factor: float) -> PartMatrix:
        """Return a multiple."""
        return replace(self, rows=self.rows * factor, cols=self.cols * factor)

    def __abs__(self) -> PartMatrix:
        """Return the moduli."""
        return replace(self, rows=abs(self.rows), cols=abs(self.cols))

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
        own = self.cols.T if self.turned else self.rows
        return self._total(_dense(own.T @ own))

    def longest(self) -> tuple[int, int]:
        """Return the largest numbers of entries in a row and in a column."""
        most = torch.tensor(
            [np.diff(x.indptr).max(initial=0) for x in (self.rows.tocsr(), self.cols.T.tocsr())]
        )
        by_row, by_col = self.part.largest(most).tolist()
        return (by_col, by_row) if self.turned else (by_row, by_col)

    def _total(self, x: Floats) -> Floats:
        return self.part.total(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))).numpy()


def _dense(x: object) -> Floats:
    return x if isinstance(x, np.ndarray) else x.toarray()  # pyright: ignore
