"""The observed entries of a matrix, validated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.observations.coordinates import (
    Duplicates,
    as_indices,
    as_matrix,
    as_positions,
    as_reals,
    check_equal_lengths,
    check_finite,
    check_range,
    check_rule,
    check_shape,
    check_weights,
    common_device,
    merge_duplicates,
    real_dtype,
)
from lowrank_opt.observations.part import Part
from lowrank_opt.observations.sparsity import CompressedAxis, SparsityPattern, sort_pairs

if TYPE_CHECKING:
    from pandas import DataFrame
    from scipy.sparse import sparray, spmatrix


IndexLike: TypeAlias = Tensor | NDArray[np.integer] | Sequence[int]
RealLike: TypeAlias = Tensor | NDArray[np.floating] | NDArray[np.integer] | Sequence[float]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Observations:
    """Observed entries ``values[k]`` at ``(rows[k], cols[k])`` of an m x n matrix.

    Inputs are copied, so that what was checked stays true. Rows and columns without an entry are
    fine. Nothing of size m x n is allocated.

    Parameters
    ----------
    rows, cols : Tensor, array or sequence of int, shape (nnz,)
        Zero-based indices; kept as int64.
    values : Tensor, array or sequence of float, shape (nnz,)
        Finite. float32 and float64 are kept, of every library; half precision becomes float32;
        integers and sequences take torch's default dtype, or float64 if that would merge integers.
    shape : tuple of int
        ``(m, n)``.
    weights : Tensor, array or sequence of float, shape (nnz,), optional
        Finite, nonnegative, at least one positive; converted to the dtype of `values`.
    duplicates : {"error", "mean", "sum", "last"}
        What to do with an index pair that comes more than once. "mean" is the weighted mean, with
        the weights added up; "last" keeps the last entry with its weight; "sum" adds values and
        takes no weights. A merged entry stands where its last copy stood.

    Raises
    ------
    ObservationError
        If there is no entry, or indices, values or weights break a rule above.
    ShapeError
        If `shape` or lengths or devices do not fit.

    Examples
    --------
    >>> obs = Observations([0, 2], [1, 0], [3.0, 5.0], shape=(3, 2))
    >>> obs
    Observations(2 entries of 3 x 2, torch.float32, cpu)
    >>> obs.csr.pointers.tolist()
    [0, 1, 1, 2]
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    weights: Tensor | None
    pattern: SparsityPattern

    def __init__(
        self,
        rows: IndexLike,
        cols: IndexLike,
        values: RealLike,
        shape: tuple[int, int],
        weights: RealLike | None = None,
        *,
        duplicates: Duplicates = "error",
    ) -> None:
        m, n = check_shape(shape)
        check_rule(duplicates)
        device = common_device(rows=rows, cols=cols, values=values, weights=weights)
        i, j = as_indices(rows, "rows", device), as_indices(cols, "cols", device)
        v = as_reals(values, "values", device)
        w = None if weights is None else as_reals(weights, "weights", device).to(v.dtype)
        check_equal_lengths(i, j, v, w)
        check_range(i, j, (m, n))
        check_finite(v, i, j)
        if w is not None:
            check_weights(w)
        pairs = sort_pairs(i, j, (m, n))
        if bool(pairs.repeated.any()):
            i, j, v, w = merge_duplicates(i, j, v, w, pairs, duplicates)
            pairs = sort_pairs(i, j, (m, n))
        self._store(SparsityPattern.of_sorted(i, j, (m, n), pairs), v, w)

    def _store(self, pattern: SparsityPattern, values: Tensor, weights: Tensor | None) -> None:
        fields = {"rows": pattern.rows, "cols": pattern.cols, "values": values}
        for name, value in (fields | {"weights": weights, "pattern": pattern}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_pattern(
        cls, pattern: SparsityPattern, values: Tensor, weights: Tensor | None = None
    ) -> Observations:
        """Return values and weights, checked where they come from, at the pairs of a pattern."""
        observations = cls.__new__(cls)
        observations._store(pattern, values, weights)
        return observations

    @classmethod
    def of_positions(
        cls,
        rows: Tensor,
        cols: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        weights: Tensor | None = None,
    ) -> Observations | None:
        """Return entries that were checked where they come from, without a copy.

        Returns
        -------
        Observations or None
            None if a pair comes twice.
        """
        pairs = sort_pairs(rows, cols, shape)
        if bool(pairs.repeated.any()):
            return None
        return cls.of_pattern(SparsityPattern.of_sorted(rows, cols, shape, pairs), values, weights)

    @classmethod
    def from_scipy(
        cls, matrix: spmatrix | sparray, *, duplicates: Duplicates = "error"
    ) -> Observations:
        """Return the stored entries of a `scipy.sparse` matrix, explicit zeros included.

        Examples
        --------
        >>> from scipy.sparse import coo_array
        >>> len(Observations.from_scipy(coo_array(([1.0, 0.0], ([0, 1], [1, 0])), shape=(2, 2))))
        2
        """
        coo = matrix.tocoo()
        return cls(coo.row, coo.col, coo.data, coo.shape, duplicates=duplicates)

    @classmethod
    def from_pandas(
        cls,
        frame: DataFrame,
        *,
        row: str,
        col: str,
        value: str,
        weight: str | None = None,
        shape: tuple[int, int] | None = None,
        duplicates: Duplicates = "error",
    ) -> Observations:
        """Return one observation for each line of a data frame.

        Parameters
        ----------
        frame : DataFrame
        row, col, value, weight : str
            Names of its columns; `row` and `col` hold zero-based positions.
        shape : tuple of int, optional
            ``(m, n)``; by default the largest positions plus one.
        duplicates : {"error", "mean", "sum", "last"}

        Raises
        ------
        ObservationError
            If a column does not exist, or as for the class.
        """
        names = [row, col, value] + ([] if weight is None else [weight])
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ObservationError(
                f"row, col, value and weight must name columns of the frame; got {missing}: "
                f"choose among {list(frame.columns)}"
            )
        i, j, v, *w = (frame[name].to_numpy() for name in names)
        if shape is None:
            shape = (_extent(i), _extent(j))
        return cls(i, j, v, shape, w[0] if w else None, duplicates=duplicates)

    @classmethod
    def from_dense(cls, matrix: Tensor | NDArray[np.floating]) -> Observations:
        """Return the entries of a dense matrix that are neither NaN nor masked.

        Parameters
        ----------
        matrix : Tensor or array, shape (m, n)
            Of every library that has the array interface; masked arrays of NumPy too.

        Raises
        ------
        ShapeError
            If there are not two axes.
        ObservationError
            If an entry is no real number, infinite, or there is none.

        Examples
        --------
        >>> obs = Observations.from_dense(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))
        >>> obs.rows.tolist(), obs.cols.tolist()
        ([0, 1, 1], [0, 0, 1])
        """
        dense = matrix.detach() if isinstance(matrix, Tensor) else as_matrix(matrix)
        if dense.layout is not torch.strided:
            raise ObservationError(
                f"a dense matrix must have the layout torch.strided; got {dense.layout}: pass its "
                "indices and values to Observations, or from_scipy a sparse matrix"
            )
        if dense.ndim != 2:
            raise ShapeError(f"a dense matrix must have two axes; got {tuple(dense.shape)}")
        i, j = torch.nonzero(~torch.isnan(dense), as_tuple=True)
        return cls(i, j, dense[i, j], (dense.shape[0], dense.shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self.pattern.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values and weights."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.values.device

    @property
    def part(self) -> Part[Observations] | None:
        """Of what, if other processes have the other entries; see `lowrank_opt.distributed`."""
        return self.pattern.part

    @property
    def csr(self) -> CompressedAxis:
        """The entries grouped by rows, built once."""
        return self.pattern.csr

    @property
    def csc(self) -> CompressedAxis:
        """The entries grouped by columns, built once."""
        return self.pattern.csc

    @property
    def row_counts(self) -> Tensor:
        """Number of entries in each row, shape (m,)."""
        return self.pattern.counts[0]

    @property
    def col_counts(self) -> Tensor:
        """Number of entries in each column, shape (n,)."""
        return self.pattern.counts[1]

    @cached_property
    def csr_values(self) -> Tensor:
        """The values in the order of `csr`, shape (nnz,)."""
        return self.values[self.csr.order]

    @cached_property
    def csr_weights(self) -> Tensor | None:
        """The weights in the order of `csr`, shape (nnz,), or None."""
        return None if self.weights is None else self.weights[self.csr.order]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        m, n = self.shape
        weighted = "" if self.weights is None else ", weighted"
        return (
            f"Observations({len(self)} entries of {m} x {n}{weighted}, {self.dtype}, {self.device})"
        )

    def to(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Observations:
        """Return the same entries with another dtype or device; nothing is sorted again.

        Raises
        ------
        ObservationError
            If `dtype` is neither float32 nor float64, or a value overflows in it.
        """
        target = self.dtype if dtype is None else real_dtype(dtype)
        where = self.device if device is None else torch.device(device)
        if (target, where) == (self.dtype, self.device):
            return self
        values = self.values.to(where, target)
        pattern = self.pattern.to(where)
        check_finite(values, pattern.rows, pattern.cols)
        weights = None if self.weights is None else self.weights.to(where, target)
        return Observations.of_pattern(pattern, values, weights)

    def with_values(self, values: Tensor) -> Observations:
        """Return other values at the same entries, sharing the sorted views.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
            Finite, in the order of `rows` and `cols`.
        """
        v = as_reals(values, "values", self.device).to(self.dtype)
        if len(v) > 0 or len(self) > 0:
            # One of several processes may have no entries.
            check_equal_lengths(self.rows, self.cols, v, None)
            check_finite(v, self.rows, self.cols)
        return Observations.of_pattern(self.pattern, v, self.weights)

    def take(self, index: Tensor | Sequence[int]) -> Observations:
        """Return the entries at positions `index`, or where a boolean mask is true.

        Parameters
        ----------
        index : Tensor, shape (k,) of integers or (nnz,) of bool

        Raises
        ------
        ObservationError
            If a position is out of range or comes twice, or nothing is taken.
        ShapeError
            If a mask does not have one element for each entry.
        """
        k = as_positions(index, len(self), self.device)
        parts = self.rows[k], self.cols[k], self.values[k], self.shape
        weights = None if self.weights is None else self.weights[k]
        if weights is not None:
            check_weights(weights)
        found = Observations.of_positions(*parts, weights) if len(k) > 0 else None
        return Observations(*parts, weights) if found is None else found

    def split(
        self, fraction: float, *, generator: torch.Generator | None = None
    ) -> tuple[Observations, Observations]:
        """Return ``(kept, held_out)``, a random split of the entries.

        Parameters
        ----------
        fraction : float
            Share held out, in (0, 1); at least one entry goes to each side.
        generator : torch.Generator, optional

        Raises
        ------
        ObservationError
            If `fraction` is outside (0, 1), or there are fewer than two entries.

        Examples
        --------
        >>> obs = Observations.from_dense(torch.eye(10))
        >>> [len(part) for part in obs.split(0.2, generator=torch.Generator().manual_seed(0))]
        [80, 20]
        """
        total = len(self)
        if not (0 < fraction < 1 and total >= 2):
            raise ObservationError(
                "a split needs a fraction in (0, 1) and at least two entries; "
                f"got fraction={fraction!r} of {total} entries"
            )
        held = min(max(round(fraction * total), 1), total - 1)
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(total, generator=generator, device=device).to(self.device)
        drawn = torch.zeros(total, dtype=torch.bool, device=self.device)
        drawn[order[:held]] = True
        del order
        return self.take(~drawn), self.take(drawn)


def _extent(index: NDArray[np.integer]) -> int:
    return (
        max(int(index.max()), 0) + 1 if len(index) and np.issubdtype(index.dtype, np.integer) else 1
    )
