r"""Coordinates in which a feasible set is a plain set of singular values.

Derived sets are affine images of a spectral set: rows and columns weighted, embedded between
frames, shifted. A chart holds the map to the spectral set's matrices and back, written once more
in NumPy, so that checks measure members without the set's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from lowrank_opt.sets import (
    ComplementSet,
    FeasibleSet,
    ImageSet,
    KyFanBall,
    NestedSet,
    OrthogonalSet,
    RankAtMost,
    SchattenBall,
    ShiftedSet,
    SingularValueBox,
    SpectralSet,
    WeightedSet,
)
from lowrank_opt.testing.cases.oracle import Array, dense, singular_values, to_array
from lowrank_opt.testing.cases.turned import TurnedWeights

Map = Callable[[Array], Array]

# The package's rule, in units of sqrt(rank) times the size of the set: two roundings of the dtype
# for the stored factors, fourteen of float64 for the arithmetic.
_STORED, _COMPUTED = 2, 14
# A set with a value of this size has no bound.
_HUGE = 2.0**100


@dataclass(frozen=True)
class Chart:
    """A spectral set and the affine map between its matrices and those of a derived set.

    Parameters
    ----------
    core : FeasibleSet
        The innermost set: a `SpectralSet` for all sets of this package.
    pull : callable
        From a matrix of the derived set to one of the core; a left inverse of `push`.
    push : callable
        From a matrix of the core to a member of the derived set.
    adjoint : callable
        Transpose of the linear part of `push`: from gradients to gradients.
    outside : callable
        Frobenius norm of the part of a matrix that no member has.
    shift : float
        Size of the largest matrix that `push` subtracts.
    gain : float
        By how much the linear part of `push` enlarges a matrix at most.
    condition : float
        By how much `pull` after `push` enlarges relative rounding at most.
    rtol : float
        A relative excess that counts as rounding too.
    turned : TurnedWeights, optional
        The rotations of a weight that members of the core are, besides being in a spectral set.
    """

    core: FeasibleSet
    pull: Map
    push: Map
    adjoint: Map
    outside: Callable[[Array], float]
    shift: float = 0.0
    gain: float = 1.0
    condition: float = 1.0
    rtol: float = 0.0
    turned: TurnedWeights | None = None

    def size(self, matrix: Array) -> float:
        """Return the size to which rounding is compared: the set's own, or the matrix's."""
        match self.core:
            case SchattenBall() | KyFanBall():
                return self.core.radius
            case SingularValueBox():
                return self.core.bounds[0]
            case _:
                return max(self.shift, float(singular_values(self.pull(matrix))[0]))

    def tolerance(self, matrix: Array, dtype: torch.dtype, rank: int) -> float:
        """Return the excess that the package's one rule explains by rounding to `dtype`."""
        return max(self.rule(dtype, rank) * self.condition, self.rtol) * self.size(matrix)

    @staticmethod
    def rule(dtype: torch.dtype, rank: int) -> float:
        """Return the relative excess that the package's one rule explains."""
        eps = _STORED * torch.finfo(dtype).eps + _COMPUTED * torch.finfo(torch.float64).eps
        return eps * max(rank, 1) ** 0.5

    def excess(self, matrix: Array) -> float:
        """Return by how much a dense matrix leaves the set: in norm, in rank or in its spaces."""
        return max(self.spectral_excess(matrix), self.outside(matrix) / self.gain)

    def spectral_excess(self, matrix: Array) -> float:
        """Return by how much a dense matrix leaves the set in norm or in rank."""
        values = singular_values(self.pull(matrix))
        tail = float(values[self.core.rank :].max(initial=0.0))
        return max(0.0, value_excess(self.core, values[: self.core.rank]), tail)

    def leaves(self, core: Array, step: float) -> bool:
        """Return whether a member of the core grown by a step is beyond the bound."""
        if self.turned is not None:
            return self.turned.touches(core, step)
        return self.spectral_excess(self.push((1 + step) * core)) > 0

    @property
    def bounded(self) -> bool:
        """Whether the set is known to be bounded."""
        if isinstance(self.core, RankAtMost) or not isinstance(self.core, SpectralSet):
            return False
        huge = np.where(np.arange(self.core.rank) < 1, _HUGE, 0.0)
        return value_excess(self.core, huge) > 0

    @property
    def cone(self) -> bool:
        """Whether the set has every multiple of its members, so that sizes do not matter."""
        return not self.bounded and self.shift == 0


def chart_of(feasible_set: FeasibleSet) -> Chart:
    """Return the chart of a set of this package; of an unknown set, the identity."""
    match feasible_set:
        case WeightedSet():
            return _weighted(feasible_set)
        case NestedSet():
            return _nested(feasible_set)
        case ComplementSet():
            return _complement(feasible_set)
        case ImageSet():
            return _image(feasible_set)
        case ShiftedSet():
            return _shifted(feasible_set)
        case OrthogonalSet():
            return _orthogonal(feasible_set)
        case _:
            return Chart(feasible_set, _same, _same, _same, _nothing)


def value_excess(core: FeasibleSet, values: Array) -> float:
    """Return the excess of decreasing singular values over a set of them, in closed form."""
    match core:
        case RankAtMost():
            return 0.0
        case SchattenBall():
            return schatten_norm(values, core.p) - core.radius
        case KyFanBall():
            return float(values[: core.k].sum()) - core.radius
        case SingularValueBox():
            return float((values - np.array(core.bounds[: len(values)])).max())
        case SpectralSet():
            return float(core.singular_value_excess(torch.from_numpy(values.copy())))
        case _:
            return 0.0


def schatten_norm(values: Array, p: float) -> float:
    """Return the p-norm of singular values without over- or underflow."""
    peak = float(values.max(initial=0.0))
    if peak == 0 or np.isinf(p) or np.isinf(peak):
        return peak
    return peak * float(((values / peak) ** p).sum() ** (1 / p))


def _same(matrix: Array) -> Array:
    return matrix


def _nothing(_matrix: Array) -> float:
    return 0.0


def _compose(
    inner: Chart, pull: Map, push: Map, adjoint: Map, *, shift: float = 0.0, gain: float = 1.0
) -> Chart:
    return Chart(
        inner.core,
        lambda W: inner.pull(pull(W)),
        lambda C: push(inner.push(C)),
        lambda G: inner.adjoint(adjoint(G)),
        lambda W: inner.outside(pull(W)),
        max(inner.shift, shift),
        inner.gain * gain,
        inner.condition,
        turned=inner.turned,
    )


def _orthogonal(feasible_set: OrthogonalSet) -> Chart:
    """Return the chart of rotations: a box of singular values, and what makes them rotations."""
    W0 = to_array(feasible_set.weight)
    b = W0.shape[1] // feasible_set.blocks
    planes = b // 2 if feasible_set.directions is None else feasible_set.directions // 2
    exact = feasible_set.radius == 2 and feasible_set.directions is None
    turned = TurnedWeights(W0, feasible_set.radius, feasible_set.blocks, min(planes, b // 2), exact)
    rank = min(len(W0), 2 * turned.planes * feasible_set.blocks)
    box = SingularValueBox(feasible_set.radius * singular_values(W0)[:rank])
    return Chart(box, _same, _same, _same, turned.outside, turned=turned)


def _weighted(feasible_set: WeightedSet) -> Chart:
    rows, cols = feasible_set.row_weights, feasible_set.col_weights
    a = 1.0 if rows is None else to_array(rows)[:, None]
    b = 1.0 if cols is None else to_array(cols)[None, :]
    inner = chart_of(feasible_set.inner)
    gain = float(np.max(a) * np.max(b))
    return _compose(inner, lambda W: W / a / b, lambda C: C * a * b, lambda G: G * a * b, gain=gain)


def _shifted(feasible_set: ShiftedSet) -> Chart:
    offset = dense(feasible_set.offset)
    inner, size = chart_of(feasible_set.inner), float(singular_values(offset)[0])
    return _compose(inner, lambda W: W + offset, lambda C: C - offset, _same, shift=size)


def _nested(feasible_set: NestedSet) -> Chart:
    # Frames rounded to their dtype stand for the nearest orthonormal ones.
    U, V = (_polar(to_array(x)) for x in (feasible_set.left, feasible_set.right))
    inner = chart_of(feasible_set.inner)
    chart = _compose(inner, lambda W: U.T @ W @ V, lambda C: U @ C @ V.T, lambda G: U.T @ G @ V)

    def outside(W: Array) -> float:
        core = U.T @ W @ V
        return max(float(np.linalg.norm(W - U @ core @ V.T)), inner.outside(core))

    return replace(chart, outside=outside)


def _complement(feasible_set: ComplementSet) -> Chart:
    """Return the chart between frames of what is orthogonal to the subspaces, by a full QR."""
    pair = (feasible_set.left, feasible_set.right)
    U, V = (None if x is None else _rest(to_array(x)) for x in pair)
    inner = chart_of(feasible_set.inner)

    def core(W: Array) -> Array:
        return _between(_transpose(U), W, _transpose(V))

    def whole(C: Array) -> Array:
        return _between(U, C, V)

    chart = _compose(inner, core, whole, core)
    return replace(chart, outside=lambda W: float(np.linalg.norm(W - whole(core(W)))))


def _rest(basis: Array) -> Array:
    return np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]


def _polar(frame: Array) -> Array:
    P, _, Qh = np.linalg.svd(frame, full_matrices=False)
    return P @ Qh


def _image(feasible_set: ImageSet) -> Chart:
    A, B = (
        None if x is None else to_array(x.to_dense())
        for x in (feasible_set.left, feasible_set.right)
    )
    a, b = (None if x is None else np.linalg.pinv(x) for x in (A, B))
    norms = [float(np.linalg.norm(x, 2)) for x in (A, B, a, b) if x is not None]
    gains = [float(np.linalg.norm(x, 2)) for x in (A, B) if x is not None]
    inner = chart_of(feasible_set.inner)
    chart = _compose(
        inner,
        lambda W: _between(a, W, b),
        lambda C: _between(A, C, B),
        lambda G: _between(_transpose(A), G, _transpose(B)),
        gain=float(np.prod(gains)),
    )

    def outside(W: Array) -> float:
        core = _between(a, W, b)
        return max(float(np.linalg.norm(W - _between(A, core, B))), inner.outside(core))

    condition = float(np.prod(norms)) * inner.condition
    return replace(chart, outside=outside, condition=condition)


def _between(A: Array | None, C: Array, B: Array | None) -> Array:
    left = C if A is None else A @ C
    return left if B is None else left @ B.T


def _transpose(A: Array | None) -> Array | None:
    return None if A is None else A.T
