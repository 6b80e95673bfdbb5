r"""Support functions of sets at a sparse matrix, bounded from above.

:math:`h(-Y) = \max_{Z \in \text{set}} \langle -Y, Z \rangle`; for a set of singular values it is
the support function of those at the singular values of Y, hence increasing in each. It is also
that of the convex hull of the set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_opt.completion.certificates.eigenvalue_bounds import gamma
from lowrank_opt.completion.certificates.part_matrix import PartMatrix
from lowrank_opt.completion.certificates.spectral_bounds import singular_value_bounds
from lowrank_opt.errors import CertificateError
from lowrank_opt.sets import FeasibleSet, LinearImage, ShiftedSet, SpectralSet
from lowrank_opt.sets.sides import as_array

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray
    from torch import Generator

    from lowrank_opt.observations import Observations

    Floats = NDArray[np.float64]
    Plain = sp.csr_array | Floats
    Matrix = Plain | PartMatrix


def has_support_function(feasible_set: FeasibleSet) -> bool:
    """Return whether `support_function` knows the set: of a norm, or made from such a one.

    Examples
    --------
    >>> from lowrank_opt import RankAtMost, SchattenBall
    >>> has_support_function(SchattenBall(1, 2.0, 3)), has_support_function(RankAtMost(3))
    (True, False)
    """
    match feasible_set:
        case SpectralSet():
            # The default of the base class approaches the maximum from below: no bound.
            own = type(feasible_set).support_singular_values
            return own is not SpectralSet.support_singular_values
        case LinearImage() | ShiftedSet():
            return has_support_function(feasible_set.inner)
        case _:
            return False


def support_function(
    feasible_set: FeasibleSet, pattern: Observations, generator: Generator | None = None
) -> tuple[float, float]:
    """Return an upper bound on the support function at -Y, and its failure probability.

    Parameters
    ----------
    feasible_set : FeasibleSet
        Bounded, as all sets of a norm are; weighted, nested and shifted sets, and images under
        features, are taken apart.
    pattern : Observations, float64
        The entries of Y.
    generator : torch.Generator, optional

    Raises
    ------
    CertificateError
        If the set is unbounded or of an unknown kind.

    Examples
    --------
    >>> from lowrank_opt import Observations, SchattenBall
    >>> Y = Observations([0, 1], [0, 1], torch.tensor([3.0, 4.0]).double(), (2, 2))
    >>> round(support_function(SchattenBall(2, radius=2.0, rank=2), Y)[0], 6)
    10.0
    """
    if not has_support_function(feasible_set):
        raise CertificateError(
            "a certificate needs a bounded set whose support function is known; got "
            f"{feasible_set}: certify against a norm ball that contains it, such as "
            "SchattenBall(p=1, radius=result.operator.schatten_norm(1), rank=...)"
        )
    return _support(feasible_set, matrix_of(pattern), 0.0, generator)


def largest_singular_value(
    pattern: Observations, generator: Generator | None = None
) -> tuple[float, float]:
    """Return an upper bound on the largest singular value, and its failure probability."""
    bounds = singular_value_bounds(matrix_of(pattern), 1, generator=generator)
    return float(bounds.values[0]), bounds.failure_probability


def matrix_of(pattern: Observations) -> Matrix:
    """Return the observed entries as a matrix: those of all processes, if there are several."""
    part = pattern.part
    if part is None:
        return sparse_matrix(pattern)
    cols = None if part.cut else sparse_matrix(part.columns(pattern))
    return PartMatrix(sparse_matrix(pattern), cols, part)


def sparse_matrix(pattern: Observations) -> sp.csr_array:
    """Return the observed entries of this process as a sparse float64 array."""
    import scipy.sparse as sparse

    csr = pattern.csr
    data = pattern.csr_values.double().cpu().numpy()
    return sparse.csr_array(
        (data, csr.indices.cpu().numpy(), csr.pointers.cpu().numpy()), shape=pattern.shape
    )


def _support(
    feasible_set: FeasibleSet, Y: Matrix, error: float, generator: Generator | None
) -> tuple[float, float]:
    """Bound the support function at every matrix within `error` of -Y in the Frobenius norm."""
    match feasible_set:
        case SpectralSet():
            return _spectral_support(feasible_set, Y, error, generator)
        case LinearImage(inner=inner):
            # <Y, A C B^T> = <A^T Y B, C>; an earlier error grows by the norms of A and B.
            A, B = (None if x.cols is None else as_array(x.matrix) for x in feasible_set.sides)
            core, rounding = _compress(A, Y, B)
            growth = math.prod(_spectral_above(x) for x in (A, B) if x is not None)
            return _support(inner, core, (error * growth + rounding) * (1 + 1e-9), generator)
        case ShiftedSet(inner=inner):
            # max over C of <-Y, C - offset>.
            support, failure = _support(inner, Y, error, generator)
            return support + _inner_product_above(feasible_set, Y, error), failure
        case _:
            raise AssertionError("has_support_function() lets no other set pass")


def _spectral_support(
    feasible_set: SpectralSet, Y: Matrix, error: float, generator: Generator | None
) -> tuple[float, float]:
    count = min(feasible_set.lmo_rank, *Y.shape)
    bounds = singular_value_bounds(Y, count, error=error, generator=generator)
    if not bool(torch.isfinite(bounds.values).all()):
        return float("inf"), 0.0
    member = feasible_set.support_singular_values(bounds.values)
    value = float(torch.dot(member, bounds.values))
    # A closed form of few roundings for each value, and a maximum: errors of x are second order.
    return value * (1 + gamma(64 + 8 * count)), bounds.failure_probability


def _compress(A: Plain | None, Y: Matrix, B: Plain | None) -> tuple[Matrix, float]:
    """Return A^T Y B and a bound on the Frobenius norm of its rounding error."""
    core, sizes = Y, abs(Y)
    if B is not None:
        core, sizes = core @ B, sizes @ abs(B)
    if A is not None:
        core, sizes = (core.T @ A).T, (sizes.T @ abs(A)).T
    assert not isinstance(core, PartMatrix), "one side at least has features"
    assert not isinstance(sizes, PartMatrix), "as the core"
    terms = sum(_terms(x) for x in (A, B) if x is not None)
    return core, 2 * gamma(terms + 4) * _norm(sizes)


def _terms(x: Plain) -> int:
    """Return the largest number of entries in a column: what one sum has of terms."""
    return int((x != 0).sum(axis=0).max())


def _spectral_above(x: Plain) -> float:
    r"""Return :math:`\sqrt{\|x\|_1 \|x\|_\infty}` or the Frobenius norm: above the spectral one."""
    sizes = abs(x)
    most = float(sizes.sum(axis=0).max()) * float(sizes.sum(axis=1).max())
    return min(math.sqrt(most) * (1 + gamma(sum(x.shape) + 4)), _norm(x))


def _inner_product_above(shifted: ShiftedSet, Y: Matrix, error: float) -> float:
    """Return an upper bound on the inner product of Y and the offset."""
    left, scale, right = (x.detach().cpu().double().numpy() for x in shifted.offset)
    value = float(np.sum((left.T @ (Y @ right)).diagonal() * scale))
    sizes = np.abs(left).T @ (abs(Y) @ np.abs(right))
    size = float(sizes.diagonal() @ np.abs(scale))
    norm = float(np.linalg.norm(left) * np.linalg.norm(right * scale))
    return value + (2 * gamma(sum(Y.shape) + len(scale) + 4) * size + error * norm) * (1 + 1e-6)


def _norm(x: Plain) -> float:
    data = x.ravel() if isinstance(x, np.ndarray) else np.asarray(x.data)
    return float(np.linalg.norm(data)) * (1 + gamma(data.size + 4))
