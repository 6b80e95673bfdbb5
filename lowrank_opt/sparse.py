"""What the library takes as a sparse matrix: SciPy declares no types."""

from __future__ import annotations

from typing import Protocol


class SparseMatrix(Protocol):
    """A sparse matrix or array of SciPy, in any of its formats."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(m, n)``."""
        ...

    def __getitem__(self, key: object, /) -> SparseMatrix: ...
