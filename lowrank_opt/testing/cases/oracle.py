r"""Truth from elsewhere: dense products and singular values in NumPy, without this package's own.

Exponents are kept apart from mantissas, so that a product of factors of size 1e300 has singular
values too; sums run in extended precision where the platform has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.operator import LowRankOperator

Array: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True)
class ScaledMatrix:
    """The matrix ``2**exponent * mantissa``, mantissa with entries of moderate size.

    Parameters
    ----------
    mantissa : array, shape (m, n), float64
    exponent : int
    """

    mantissa: Array
    exponent: int

    def dense(self) -> Array:
        """Return the plain float64 matrix; entries that float64 cannot hold become inf or 0."""
        with np.errstate(over="ignore", under="ignore"):
            return np.ldexp(self.mantissa, self.exponent)

    def singular_values(self) -> Array:
        """Return the singular values, decreasing, shape (min(m, n),)."""
        with np.errstate(over="ignore", under="ignore"):
            return np.ldexp(singular_values(self.mantissa), self.exponent)


def to_array(x: Tensor) -> Array:
    """Return a float64 copy on the CPU."""
    return x.detach().cpu().double().numpy().copy()


def is_finite(op: LowRankOperator) -> bool:
    """Return whether all stored factors are finite."""
    return all(bool(np.isfinite(to_array(x)).all()) for x in op)


def product(op: LowRankOperator) -> ScaledMatrix:
    """Return ``left diag(scale) right^T`` of the stored factors, summed in extended precision."""
    left, a, left_peaks = _column_mantissas(to_array(op.left))
    right, b, right_peaks = _column_mantissas(to_array(op.right))
    scale, c = np.frexp(to_array(op.scale))
    exponents = a + b + c
    used = (scale != 0) & (left_peaks != 0) & (right_peaks != 0)
    if not used.any():
        return ScaledMatrix(np.zeros(op.shape), 0)
    top = int(exponents[used].max())
    # Columns that are 2**1000 times smaller than the largest one vanish beside it.
    weights = np.ldexp(scale, np.clip(exponents - top, -1000, 0)).astype(np.longdouble)
    total = (left.astype(np.longdouble) * weights) @ right.astype(np.longdouble).T
    return ScaledMatrix(total.astype(np.float64), top)


def underflow(op: LowRankOperator, exponent: int = 0) -> float:
    """Return what rounding of factor entries below the normal range changes, over 2**exponent."""
    step = torch.finfo(op.dtype).smallest_normal * torch.finfo(op.dtype).eps
    left, scale, right = (np.abs(to_array(x)).astype(np.longdouble) for x in op)
    columns = np.sqrt(len(left)) * right.max(axis=0) + np.sqrt(len(right)) * left.max(axis=0)
    return float(np.ldexp(step * (scale * columns).sum(), -exponent))


def dense(op: LowRankOperator) -> Array:
    """Return the dense matrix in float64, shape (m, n)."""
    return product(op).dense()


def absolute(op: LowRankOperator) -> ScaledMatrix:
    """Return ``|left| diag(|scale|) |right|^T``, to which rounding errors are compared."""
    return product(LowRankOperator(*(x.detach().abs() for x in op)))


def magnitude(op: LowRankOperator) -> Array:
    """Return `absolute` in plain float64."""
    return absolute(op).dense()


def singular_values(matrix: Array) -> Array:
    """Return the singular values of a dense matrix by LAPACK's full SVD, decreasing."""
    peak = np.abs(matrix).max(initial=0.0)
    if peak == 0 or not np.isfinite(peak):
        return np.full(min(matrix.shape), peak)
    unit = math.ldexp(1.0, int(np.frexp(peak)[1]) - 1)
    return np.asarray(np.linalg.svd(matrix / unit, compute_uv=False) * unit, dtype=np.float64)


def from_dense(matrix: Array, rank: int, *, like: Tensor) -> LowRankOperator:
    """Return a truncated SVD, computed in float64, in the dtype and on the device of `like`."""
    U, sigma, Vh = np.linalg.svd(matrix, full_matrices=False)
    parts = U[:, :rank], sigma[:rank], Vh[:rank].T
    return LowRankOperator(*(torch.from_numpy(x.copy()).to(like) for x in parts))


def random_frame(rows: int, cols: int, rng: np.random.Generator) -> Array:
    """Return random orthonormal columns, shape (rows, cols)."""
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def _column_mantissas(x: Array) -> tuple[Array, NDArray[np.int_], Array]:
    """Return columns with a largest entry below 1, their exponents, and their largest entries."""
    peak = np.abs(x).max(axis=0, initial=0.0)
    exponents = np.frexp(peak)[1].astype(int)
    # Two steps: 2**-1074 and its inverse are not both numbers.
    half = exponents // 2
    return np.ldexp(np.ldexp(x, -half), half - exponents), exponents, peak
