"""Entries of a matrix by their ids: what every table becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.tables.ids import Ids


class Observed(Protocol):
    """What `lowrank_opt.Observations` are: entries by position."""

    @property
    def rows(self) -> Tensor:
        """Positions, shape (nnz,)."""
        ...

    @property
    def cols(self) -> Tensor:
        """Positions, shape (nnz,)."""
        ...

    @property
    def values(self) -> Tensor:
        """Real numbers, shape (nnz,)."""
        ...

    @property
    def weights(self) -> Tensor | None:
        """Nonnegative, shape (nnz,), if there are any."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        ...


if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import torch
    from narwhals.typing import IntoFrame
    from torch import Tensor

    from lowrank_opt.sparse import SparseMatrix

    Interactions: TypeAlias = (
        NDArray[np.generic]
        | Tensor
        | Sequence[Sequence[object]]
        | tuple[object, ...]
        | Mapping[str, object]
        | IntoFrame
        | SparseMatrix
        | Observed
        | str
        | PathLike[str]
    )
    Reals: TypeAlias = NDArray[np.generic] | Tensor | Sequence[float] | pd.Series


@dataclass(frozen=True, eq=False)
class Triplets:
    """Entries of a matrix, by ids.

    Parameters
    ----------
    rows, cols : array, shape (nnz,)
        Ids.
    values : array, shape (nnz,), or None
        float32 or float64.
    weights : array, shape (nnz,), or None
    shape : tuple of int or None
        If the ids are positions in a matrix of that shape.
    names : tuple of str or None
        Of the columns that held the ids.
    device : torch.device or None
        Where the values were, if in a tensor.
    """

    rows: Ids
    cols: Ids
    values: NDArray[np.floating] | None = None
    weights: NDArray[np.floating] | None = None
    shape: tuple[int, int] | None = None
    names: tuple[str, str] | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.rows)
