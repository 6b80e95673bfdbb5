"""Matrices with gaps: dense, masked, sparse, or observed; and what is a matrix at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.tables.arrays import Array, as_finite, as_reals, mask_of
from lowrank_opt.tables.triplets import Triplets

if TYPE_CHECKING:
    from scipy.sparse import spmatrix
    from torch import Tensor

    from lowrank_opt.tables.triplets import Observed

# Formats of SciPy that store zeros where there is nothing, and where these are.
_FILLED = {"bsr": "blocks", "dia": "diagonals"}


def as_dense(data: Array) -> Array | None:
    """Return a matrix with NaN for its gaps, or None if an array holds triplets.

    Floating arrays are matrices, and all others lines of ids, except these: with three or four
    columns of which the first two are whole numbers, each line is a row id, a column id and a
    value. If it is not plain which of the two is meant, because something is missing or there is a
    fourth column, that is said.

    Raises
    ------
    ObservationError
        If the array could be a matrix, and triplets as well.
    """
    mask = mask_of(data)
    if mask is not None and data.dtype.kind in "iuf":
        gaps = np.full(data.shape, np.nan, _wide(data.dtype))
        gaps[~mask] = as_reals(np.asarray(data)[~mask], "entries")
        data = gaps
    x = np.asarray(data)
    if x.dtype.kind != "f" or x.size == 0:
        return None
    gaps = np.isnan(x)
    if x.shape[1] == 2 and not gaps.any():
        return None
    if x.shape[1] not in (3, 4) or not _are_whole(x[:, :2]):
        return x
    if x.shape[1] == 3 and not gaps.any():
        return None
    m, n = x.shape
    which = "a gap" if gaps.any() else "a fourth column"
    raise ObservationError(
        f"an array must be a matrix or a list of triplets; got {m} x {n} numbers with whole ones "
        f"in the first two columns and {which}, which could be both: for {m} triplets select three "
        "columns and drop what is missing, for a matrix with gaps pass Observations.from_dense(X)"
    )


def from_dense(dense: Array) -> Triplets:
    """Return the entries of a matrix that are not NaN."""
    i, j = np.nonzero(~np.isnan(dense))
    shape = (dense.shape[0], dense.shape[1])
    return Triplets(i, j, as_finite(np.asarray(dense[i, j]), "values"), None, shape)


def from_observations(data: Observed) -> Triplets:
    """Return the entries, with their weights."""
    weights = None if data.weights is None else data.weights.cpu().numpy()
    i, j, values = (x.cpu().numpy() for x in (data.rows, data.cols, data.values))
    return Triplets(i, j, values, weights, data.shape)


def from_torch_sparse(data: Tensor) -> Triplets:
    """Return the stored entries, repeated ones added up, as torch means them."""
    if data.ndim != 2 or (data.is_sparse and data.sparse_dim() != 2):
        raise ShapeError(f"a sparse tensor must have two axes; got {tuple(data.shape)}")
    if data.layout in (torch.sparse_bsr, torch.sparse_bsc) and bool((data.values() == 0).any()):
        raise _unclear_zeros(f"{data.layout}", "blocks")
    coo = data.detach().cpu().to_sparse_coo()
    if not (coo.is_floating_point() or coo.is_complex() or coo.dtype == torch.bool):
        # Sums of small integers would start again from below.
        coo = coo.to(torch.int64)
    coo = coo.coalesce()
    i, j = coo.indices().numpy()
    return Triplets(i, j, as_finite(coo.values(), "values"), None, (data.shape[0], data.shape[1]))


def from_scipy(data: spmatrix) -> Triplets:
    """Return the stored entries, zeros too.

    Raises
    ------
    ObservationError
        If an entry is stored twice: SciPy would add them up, a list of triplets has each. Or if
        there are zeros in a format that fills up with them.
    """
    stored: Any = data
    if (form := getattr(stored, "format", "")) in _FILLED:
        zeros = bool((stored.data == 0).any()) if form == "bsr" else _has_zeros_on_diagonals(stored)
        if zeros:
            raise _unclear_zeros(f"the format {form!r}", _FILLED[form])
    coo: Any = data.tocoo()
    if len(coo.shape) != 2:
        raise ShapeError(f"a sparse array must have two axes; got {coo.shape}")
    i, j = coo.row.astype(np.int64), coo.col.astype(np.int64)
    if coo.shape[0] * coo.shape[1] < 2**63:
        keys = np.sort(i * coo.shape[1] + j)
        same = keys[1:] == keys[:-1]
    else:
        order = np.lexsort((j, i))
        same = (np.diff(i[order]) == 0) & (np.diff(j[order]) == 0)
    if (again := int(same.sum())) > 0:
        raise ObservationError(
            f"a sparse matrix must have each entry once; got {again} again, which could be added "
            "up or count each: call sum_duplicates(), or pass (rows, columns, values)"
        )
    return Triplets(i, j, as_finite(coo.data, "values"), None, coo.shape)


def _has_zeros_on_diagonals(data: Any) -> bool:  # noqa: ANN401
    """Whether there is a zero among the entries of a matrix by diagonals."""
    m, n = data.shape
    cols = np.arange(data.data.shape[1])
    rows = cols - np.asarray(data.offsets)[:, None]
    inside = (rows >= 0) & (rows < m) & (cols < n)
    return bool((data.data[inside] == 0).any())


def _unclear_zeros(form: str, filled: str) -> ObservationError:
    return ObservationError(
        f"a sparse matrix must say which zeros are entries; got {form} with zeros in its {filled}, "
        "which could be values of 0 or nothing at all: pass the values as coordinates (COO), with "
        "those zeros that are entries"
    )


def _are_whole(x: Array) -> bool:
    known = x[~np.isnan(x)]
    return bool((known == np.round(known)).all()) and len(known) > 0


def _wide(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    return np.float32 if dtype == np.float32 else np.float64
