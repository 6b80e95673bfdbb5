"""Features of rows or columns: a constant matrix, dense or sparse, to multiply factors with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.linalg import nearest_frame
from lowrank_opt.parameterizations.wide import WideBuffers

if TYPE_CHECKING:
    from lowrank_opt.sparse import SparseMatrix

    FeatureMatrix: TypeAlias = Tensor | NDArray[np.floating] | SparseMatrix


class Features(WideBuffers):
    """A constant m x f matrix as buffers, in float32 or better.

    A sparse one keeps its indices and values as two plain tensors, which every format of a state
    can hold.

    Parameters
    ----------
    matrix : Tensor, shape (m, f)
        Dense, or sparse COO and coalesced.
    orthonormal : bool
        Columns are orthonormal, and are made so again in every dtype the module is moved to.

    Examples
    --------
    >>> [*Features(torch.eye(2).to_sparse().coalesce()).state_dict()]
    ['index', 'values']
    """

    wide: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, matrix: Tensor, *, orthonormal: bool = False) -> None:
        super().__init__()
        self.orthonormal = orthonormal
        self.shape: tuple[int, int] = (matrix.shape[0], matrix.shape[1])
        self.register_buffer("index", matrix.indices() if matrix.is_sparse else None)
        self.register_buffer("values", matrix.values() if matrix.is_sparse else matrix)
        self.index: Tensor | None
        self.values: Tensor

    def converted(self, buffer: Tensor) -> Tensor:
        """Return the values, orthonormal again where they were."""
        return nearest_frame(buffer) if self.orthonormal else buffer

    @property
    def matrix(self) -> Tensor:
        """The matrix, dense or sparse COO."""
        if self.index is None:
            return self.values
        return torch.sparse_coo_tensor(
            self.index, self.values, self.shape, is_coalesced=True, check_invariants=False
        )


def as_matrix(features: FeatureMatrix, like: Tensor) -> Tensor:
    """Return features as a dense or coalesced COO tensor on the device of `like`.

    In the dtype of `like`, float32 for half precision: features rounded further would not be those
    that were given.

    Raises
    ------
    ShapeError
        If they are not a matrix with at least one row and column.
    TargetError
        If a value is not finite.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    x = _to_torch(features).detach().to(like.device, dtype)
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(
            f"features must be a matrix with a line for each row; got {tuple(x.shape)}"
        )
    x = x if x.layout == torch.strided else x.to_sparse_coo().coalesce()
    if not bool(torch.isfinite(x.values() if x.is_sparse else x).all()):
        raise TargetError("features must be finite; got NaN or infinity: fill what is missing")
    return x


def _to_torch(features: FeatureMatrix) -> Tensor:
    if isinstance(features, Tensor):
        return features
    if isinstance(features, np.ndarray):
        return torch.from_numpy(features)
    coo = cast("Any", features).tocoo()
    index = torch.from_numpy(np.stack((coo.row, coo.col)).astype(np.int64))
    shape = (int(coo.shape[0]), int(coo.shape[1]))
    values = torch.from_numpy(np.ascontiguousarray(coo.data))
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True)
