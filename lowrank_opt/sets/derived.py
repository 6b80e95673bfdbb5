"""Sets made from other sets: weighted rows and columns, nested in fixed spaces, shifted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.errors import RadiusError
from lowrank_opt.linalg import lp_norm, product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, relative_tolerance
from lowrank_opt.sets.spectral import SchattenBall

if TYPE_CHECKING:
    from lowrank_opt.sets.base import Gradient


@dataclass(frozen=True, eq=False)
class WeightedSet(FeasibleSet):
    r""":math:`\{\mathrm{diag}(a)\, C\, \mathrm{diag}(b) : C \in \text{inner}\}`, a, b > 0.

    With an inner nuclear-norm ball this is the ball of a weighted trace norm. The excess and the
    tolerance are those of C in the inner set.

    Parameters
    ----------
    inner : FeasibleSet
    row_weights : Tensor, shape (m,), or None
        Multiply the rows of a member; positive and finite. None stands for ones.
    col_weights : Tensor, shape (n,), or None
        Multiply the columns of a member.

    Raises
    ------
    RadiusError
        If a weight is not positive and finite.

    Examples
    --------
    >>> ball = SchattenBall(p=1, radius=1.0, rank=1)
    >>> wide = WeightedSet(ball, None, torch.tensor([2.0, 2.0]))
    >>> wide.contains(LowRankOperator.from_dense(torch.tensor([[2.0, 0.0]])))
    True
    """

    inner: FeasibleSet
    row_weights: Tensor | None = None
    col_weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("row_weights", "col_weights"):
            weights = getattr(self, name)
            if weights is not None and not bool((torch.isfinite(weights) & (weights > 0)).all()):
                raise RadiusError(f"{name} must be positive and finite; got {_describe(weights)}")

    def __repr__(self) -> str:
        rows, cols = _describe(self.row_weights), _describe(self.col_weights)
        return f"WeightedSet(inner={self.inner}, row_weights={rows}, col_weights={cols})"

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set: weights do not change ranks."""
        return self.inner.rank

    @property
    def norm_name(self) -> str:
        return _prefixed("weighted", self.inner.norm_name)

    @property
    def bound(self) -> str:
        return _prefixed("weighted", self.inner.bound)

    @property
    def frobenius_bound(self) -> float:
        weights = (w for w in (self.row_weights, self.col_weights) if w is not None)
        return math.prod(float(w.max()) for w in weights) * self.inner.frobenius_bound

    def with_rank(self, rank: int) -> WeightedSet:
        return replace(self, inner=self.inner.with_rank(rank))

    def scaled(self, factor: float) -> WeightedSet:
        return replace(self, inner=self.inner.scaled(factor))

    def _weigh(self, op: LowRankOperator, *, inverse: bool) -> LowRankOperator:
        left, scale, right = (x.double() for x in op)
        left = _scale_rows(left, self.row_weights, inverse=inverse)
        return LowRankOperator(left, scale, _scale_rows(right, self.col_weights, inverse=inverse))

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return C and what the inner set makes of it."""
        return self.inner.as_spectral(self._weigh(op, inverse=True))

    def excess(self, op: LowRankOperator) -> float:
        return self.inner.excess(self._weigh(op, inverse=True))

    def unit(self, op: LowRankOperator) -> float:
        return self.inner.unit(self._weigh(op, inverse=True))

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the weighted Frobenius norm of C, not in that of W."""
        inner = self.inner.project(self._weigh(op, inverse=True))
        return self._weigh(inner, inverse=False).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        op = self.inner.sample(shape, generator=generator, dtype=dtype)
        return self._weigh(op, inverse=False).to(dtype=op.dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        inner = self.inner.lmo(_reweight(gradient, self.row_weights, self.col_weights))
        return self._weigh(inner, inverse=False).to(dtype=inner.dtype)


def WeightedSchattenBall(
    *,
    p: float,
    radius: float,
    rank: int,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
) -> WeightedSet:
    """Return the Schatten ball whose members' rows and columns are multiplied by weights.

    Examples
    --------
    >>> WeightedSchattenBall(p=1, radius=2.0, rank=3, row_weights=torch.ones(4)).rank
    3
    """
    return WeightedSet(SchattenBall(p, radius, rank), row_weights, col_weights)


@dataclass(frozen=True, eq=False)
class NestedSet(FeasibleSet):
    r""":math:`\{U C V^T : C \in \text{inner}\}` for orthonormal U (m x k) and V (n x l).

    Unitarily invariant norms of a member are those of C. The excess is the larger of the excess
    of C and of the part of W outside the two spaces (in the Frobenius norm).

    Examples
    --------
    >>> frame = torch.eye(3)[:, :1]
    >>> nested = NestedSet(SchattenBall(1, 1.0, 1), frame, frame)
    >>> nested.contains(LowRankOperator.from_dense(torch.diag(torch.tensor([1.0, 0.0, 0.0]))))
    True
    """

    inner: FeasibleSet
    left: Tensor
    right: Tensor

    def __repr__(self) -> str:
        (m, k), (n, ell) = self.left.shape, self.right.shape
        return f"NestedSet(inner={self.inner}, left={m} x {k}, right={n} x {ell})"

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set."""
        return self.inner.rank

    @property
    def norm_name(self) -> str:
        return self.inner.norm_name

    @property
    def bound(self) -> str:
        return self.inner.bound

    @property
    def frobenius_bound(self) -> float:
        return self.inner.frobenius_bound

    def with_rank(self, rank: int) -> NestedSet:
        return replace(self, inner=self.inner.with_rank(rank))

    def scaled(self, factor: float) -> NestedSet:
        return replace(self, inner=self.inner.scaled(factor))

    def core(self, op: LowRankOperator) -> LowRankOperator:
        """Return ``U^T W V`` as an operator of the inner shape, in float64."""
        left, scale, right = (x.double() for x in op)
        return LowRankOperator(self.left.double().mT @ left, scale, self.right.double().mT @ right)

    def embed(self, core: LowRankOperator) -> LowRankOperator:
        """Return ``U C V^T`` in float64."""
        left, scale, right = (x.double() for x in core)
        return LowRankOperator(self.left.double() @ left, scale, self.right.double() @ right)

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return what the inner set makes of W, or of C: norm and rank, not the spaces."""
        if isinstance(self.inner, SpectralSet):
            return op, self.inner
        return self.inner.as_spectral(self.core(op))

    def excess(self, op: LowRankOperator) -> float:
        core = self.core(op.detach())
        return max(self.inner.excess(core), self._outside(op.detach(), core))

    def _outside(self, op: LowRankOperator, core: LowRankOperator) -> float:
        outside = product_svd(*(op.to(dtype=torch.float64) - self.embed(core)))[1]
        return float(lp_norm(outside, 2))

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether C is a member and what is outside the two spaces is rounding of W.

        Weights inside may make W much larger than C: each is compared with its own size.
        """
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        op, core = op.detach(), self.core(op.detach())
        size = max(self.unit(op), float(op.schatten_norm(math.inf)))
        return self.inner.contains(core, rtol=rtol) and self._outside(op, core) <= rtol * size

    def unit(self, op: LowRankOperator) -> float:
        return self.inner.unit(self.core(op))

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the Frobenius norm (if the inner projection is)."""
        return self.embed(self.inner.project(self.core(op))).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        inner_shape = (self.left.shape[1], self.right.shape[1])
        op = self.inner.sample(inner_shape, generator=generator, dtype=dtype)
        return self.embed(op).to(dtype=op.dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        if isinstance(gradient, LowRankOperator):
            return self.embed(self.inner.lmo(self.core(gradient))).to(dtype=gradient.dtype)
        core = self.left.double().mT @ _times(gradient, self.right.double())
        dtype = gradient.dtype if isinstance(gradient, Tensor) else torch.float64
        return self.embed(self.inner.lmo(core)).to(dtype=dtype)


@dataclass(frozen=True, eq=False)
class ShiftedSet(FeasibleSet):
    """``{C - offset : C in inner}``: rank at most the sum of the two ranks.

    Examples
    --------
    >>> one = LowRankOperator.from_dense(torch.eye(2))
    >>> ShiftedSet(SchattenBall(1, 2.0, 2), one).contains(one - one)
    True
    """

    inner: FeasibleSet
    offset: LowRankOperator

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set plus that of the offset, at most min(m, n)."""
        return min(self.inner.rank + self.offset.rank, *self.offset.shape)

    @property
    def norm_name(self) -> str:
        return _prefixed("shifted", self.inner.norm_name)

    @property
    def bound(self) -> str:
        return _prefixed("shifted", self.inner.bound)

    @property
    def frobenius_bound(self) -> float:
        return self.inner.frobenius_bound + float(self.offset.detach().schatten_norm(2))

    def scaled(self, factor: float) -> ShiftedSet:
        return ShiftedSet(self.inner.scaled(factor), factor * self.offset)

    def _shift(self, op: LowRankOperator, sign: int) -> LowRankOperator:
        return op.to(dtype=torch.float64) + sign * self.offset.to(dtype=torch.float64)

    def excess(self, op: LowRankOperator) -> float:
        return self.inner.excess(self._shift(op, 1))

    def unit(self, op: LowRankOperator) -> float:
        """Return the unit of C plus the norm of the offset, which is rounded with it."""
        offset = float(self.offset.detach().schatten_norm(math.inf))
        return self.inner.unit(self._shift(op, 1)) + offset

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the norm of the inner projection."""
        return self._shift(self.inner.project(self._shift(op, 1)), -1).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        op = self.inner.sample(shape, generator=generator, dtype=dtype)
        return self._shift(op, -1).to(dtype=op.dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        inner = self.inner.lmo(gradient)
        return self._shift(inner, -1).to(dtype=inner.dtype)


def _prefixed(word: str, name: str) -> str:
    return name if name == "none" else f"{word} {name}"


def _scale_rows(x: Tensor, weights: Tensor | None, *, inverse: bool) -> Tensor:
    if weights is None:
        return x
    column = weights.detach().to(x).unsqueeze(-1)
    return x / column if inverse else x * column


def _reweight(gradient: Gradient, rows: Tensor | None, cols: Tensor | None) -> Gradient:
    """Return ``diag(rows) gradient diag(cols)`` in the kind of `gradient`."""
    if isinstance(gradient, LowRankOperator):
        left = _scale_rows(gradient.left, rows, inverse=False)
        return LowRankOperator(
            left, gradient.scale, _scale_rows(gradient.right, cols, inverse=False)
        )
    if isinstance(gradient, Tensor):
        a = 1.0 if rows is None else rows.to(gradient).unsqueeze(1)
        b = 1.0 if cols is None else cols.to(gradient).unsqueeze(0)
        return gradient * a * b
    import scipy.sparse as sparse

    m, n = gradient.shape
    a = sparse.diags_array([1.0] * m if rows is None else rows.double().numpy())
    b = sparse.diags_array([1.0] * n if cols is None else cols.double().numpy())
    return a @ sparse.csr_array(gradient) @ b


def _times(gradient: Gradient, x: Tensor) -> Tensor:
    if isinstance(gradient, Tensor):
        return gradient.to(x.dtype) @ x
    return torch.from_numpy(gradient @ x.numpy())


def _describe(weights: Tensor | None) -> str:
    if weights is None:
        return "None"
    return f"{weights.numel()} values from {float(weights.min())!r} to {float(weights.max())!r}"
