r"""Upper bounds on singular values that hold in spite of rounding.

Every bound is a theorem about the stored numbers, evaluated in float64 with its rounding errors
added. Sums and matrix products may run in any order, fused or blocked, but conventionally (no
Strassen-like schemes): an inner product of length N is off by at most :math:`\gamma_N |x|^T |y|`,
:math:`\gamma_N = N u / (1 - N u)`, u = 1.1e-16 (Higham 2002, section 3.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.certificates.eigenvalue_bounds import TINY, U, eigenvalue_bounds, gamma
from lowrank_opt.completion.certificates.part_matrix import PartMatrix
from lowrank_opt.completion.certificates.random_start import random_start_bound

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Matrix = sp.csr_array | Floats | PartMatrix

# The smaller side up to which its Gram matrix is made: 0.5 GB.
GRAM_LIMIT = 8192
_BLOCK = 1024
# A dense product runs about this many times as many operations a second as a sparse one.
_DENSE_SPEED = 30


class SingularValueBounds(NamedTuple):
    """Upper bounds, and how sure they are.

    Attributes
    ----------
    values : Tensor, shape (count,)
        float64, decreasing; the i-th is at least the i-th singular value.
    failure_probability : float
        0 for a proof; else over the draw of the random start.
    """

    values: Tensor
    failure_probability: float


def singular_value_bounds(
    matrix: Matrix,
    count: int,
    *,
    error: float = 0.0,
    generator: torch.Generator | None = None,
) -> SingularValueBounds:
    r"""Bound the `count` largest singular values of a matrix from above.

    Parameters
    ----------
    matrix : scipy sparse array or array, shape (m, n)
        float64.
    count : int
        At least 1; cut to min(m, n).
    error : float
        Bound on the Frobenius norm of a difference between `matrix` and the one that is meant.
    generator : torch.Generator, optional
        For the random start where the smaller side is longer than 8192.

    Returns
    -------
    SingularValueBounds
        Infinite if the matrix is not finite.

    Notes
    -----
    Up to a smaller side of 8192, roots of bounds on the eigenvalues of its Gram matrix, see
    `eigenvalue_bounds`: a proof. Squares are within about 1e-11 of the largest square, hence values
    next to zero within a few millionths of the largest value.
    Above, :math:`\sigma_1` from a random start and :math:`\sigma_i \le \|G\|_F / \sqrt{i}`.

    Examples
    --------
    >>> bounds = singular_value_bounds(np.diag([3.0, 4.0]), 1)
    >>> 4.0 <= float(bounds.values[0]) < 4.0 * (1 + 1e-12)
    True
    """
    count = min(count, *matrix.shape)
    # Of rows that are cut there is no Gram matrix but that of the columns.
    turned = matrix.shape[0] < matrix.shape[1] and not (
        isinstance(matrix, PartMatrix) and matrix.cut
    )
    scaled, factor = _scaled(matrix.T if turned else matrix)
    if factor == 0.0 or not math.isfinite(factor):
        return SingularValueBounds(torch.full((count,), factor + error).double(), 0.0)
    failure = 0.0
    if scaled.shape[1] <= GRAM_LIMIT:
        values = np.sqrt(eigenvalue_bounds(*_gram(scaled), count))
    else:
        top, failure = random_start_bound(scaled, generator)
        values = np.minimum(top, _frobenius(scaled) / np.sqrt(np.arange(1.0, count + 1)))
    # Weyl's inequality for `error`; the last factors cover the roundings of these last lines.
    with np.errstate(over="ignore"):
        rounded = (values * factor + error) * (1 + 16 * U)
    return SingularValueBounds(torch.from_numpy(np.nextafter(rounded, math.inf)), failure)


def _scaled(matrix: Matrix) -> tuple[Matrix, float]:
    """Divide by a power of two, so that no square overflows; return it, 0 for a zero matrix."""
    parted = isinstance(matrix, PartMatrix)
    peak = matrix.peak() if parted else float(np.abs(_entries(matrix)).max(initial=0.0))
    if peak == 0.0 or not math.isfinite(peak):
        return matrix, peak if peak == 0.0 else math.inf
    factor = 2.0 ** min(max(math.frexp(peak)[1], -1000), 1000)
    return matrix * (1 / factor), factor


def _entries(matrix: sp.csr_array | Floats) -> Floats:
    return matrix.ravel() if isinstance(matrix, np.ndarray) else np.asarray(matrix.data)


def _frobenius(matrix: Matrix) -> float:
    squares, size = _squares(matrix)
    # Squares below the smallest normal number may be lost.
    return math.sqrt(squares + size * TINY) * (1 + gamma(size) + 8 * U)


def _squares(matrix: Matrix) -> tuple[float, int]:
    if isinstance(matrix, PartMatrix):
        return matrix.squares(), matrix.count
    data = _entries(matrix)
    return float(np.dot(data, data)), data.size


def _gram(matrix: Matrix) -> tuple[Floats, float]:
    """Return the Gram matrix, and a bound on the spectral norm of its rounding error."""
    m, n = matrix.shape
    # The modulus of a matrix has a spectral norm of at most its Frobenius norm.
    error = gamma(m) * _frobenius(matrix) ** 2 + 2.0 * m * n * TINY
    return _gram_product(matrix), error * (1 + 8 * U)


def _gram_product(matrix: Matrix) -> Floats:
    if isinstance(matrix, PartMatrix):
        return matrix.gram()
    if isinstance(matrix, np.ndarray):
        return matrix.T @ matrix
    m, n = matrix.shape
    rows = matrix.tocsr()
    counts = np.diff(rows.indptr)
    if float(np.dot(counts, counts)) * _DENSE_SPEED < float(m) * n * n:
        return np.asarray((rows.T @ rows).toarray())
    gram = np.zeros((n, n))
    for first in range(0, m, _BLOCK):
        block = rows[first : first + _BLOCK].toarray()
        gram += block.T @ block
    return gram
