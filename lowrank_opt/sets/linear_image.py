r"""Sets of matrices :math:`A C B^T` with C in an inner set: weighted, nested, between features.

Columns of A and B may be dependent. Among all C with the same :math:`A C B^T` the one that `core`
takes, :math:`C_0 = A^+ W (B^+)^T = P_A C P_B` with orthogonal projectors P, has the smallest
singular values one by one, :math:`\sigma_i(P_A C P_B) \le \sigma_i(C)`. Hence W is in the image of
a spectral set if and only if :math:`C_0` is in that set, up to what is outside the column spaces:
membership is decided exactly, by one product.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import lp_norm, nearest_frame, product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, alike, relative_tolerance
from lowrank_opt.sets.sides import Features, FeatureSVD, Frame, Side, diagonal, features
from lowrank_opt.sets.spectral import SchattenBall

if TYPE_CHECKING:
    from lowrank_opt.sets.base import Gradient

# Rounding on the way back that the margins of certificates cover.
_WELL = 16.0


class LinearImage(FeasibleSet):
    r""":math:`\{A C B^T : C \in \text{inner}\}`; a subclass is a frozen dataclass with `sides`.

    The excess is the larger of the excess of C over the inner set and of the part of W outside the
    two column spaces (in the Frobenius norm, divided by :math:`\|A\| \|B\|`). The tolerance is
    that of the inner set times the condition numbers of A and B: so much may rounding of W be
    enlarged on the way back. Norms of W are at most :math:`\|A\|_2 \|B\|_2` times those of C.

    Attributes
    ----------
    inner : FeasibleSet
    sides : pair of Side
        A and B.
    """

    inner: FeasibleSet

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, Side]:
        """A and B."""

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set, or that of a side if it is less."""
        return min((self.inner.rank, *(x.rank for x in self.sides if x.rank is not None)))

    @property
    def norm_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._said(self.inner.norm_name)

    @property
    def bound(self) -> str:
        return self._said(self.inner.bound)

    def _said(self, name: str) -> str:
        if self.inner.norm_name == "none":
            return "none"
        for words in dict.fromkeys(side.words for side in self.sides):
            name = words.format(name)
        return name

    @property
    def size(self) -> float | None:
        return self.inner.size

    @property
    def frobenius_bound(self) -> float:
        return self._gain * self.inner.frobenius_bound

    def with_rank(self, rank: int) -> Self:
        return self._around(self.inner.with_rank(rank))

    def scaled(self, factor: float) -> Self:
        return self._around(self.inner.scaled(factor))

    def _around(self, inner: FeasibleSet) -> Self:
        return replace(self, inner=inner)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @property
    def truncates(self) -> bool:
        """Where singular values of W are those of C; not where rows are weighted."""
        return self.inner.truncates and all(side.isometric for side in self.sides)

    def averaged(
        self, sets: Sequence[FeasibleSet], weights: Sequence[float], *, rank: int
    ) -> FeasibleSet:
        """Between equal sides C is averaged."""
        images = alike(self, sets)
        if images is None or not all(map(self._same_sides, images)):
            return super().averaged(sets, weights, rank=rank)
        rank = min((rank, *(x.cols for x in self.sides if x.cols is not None)))
        inner = [image.inner for image in images]
        return self._around(inner[0].averaged(inner, weights, rank=rank))

    def _same_sides(self, other: LinearImage) -> bool:
        return all(x.same(y) for x, y in zip(self.sides, other.sides, strict=True))

    @property
    def condition(self) -> float:
        """The product of the condition numbers of A and B."""
        return math.prod(side.condition for side in self.sides)

    @property
    def _gain(self) -> float:
        """By how much the sides enlarge a matrix at most."""
        return math.prod(side.norm for side in self.sides)

    def core(self, op: LowRankOperator) -> LowRankOperator:
        """Return ``A^+ W (B^+)^T`` as an operator of the inner shape, in float64."""
        (left, scale, right), (A, B) = (x.double() for x in op.detach()), self.sides
        return LowRankOperator(A.pull(left), scale, B.pull(right))

    def embed(self, core: LowRankOperator) -> LowRankOperator:
        """Return ``A C B^T`` in float64."""
        (left, scale, right), (A, B) = (x.double() for x in core.detach()), self.sides
        return LowRankOperator(A.times(left), scale, B.times(right))

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return what the inner set makes of C, or of W: norm and rank, not the column spaces.

        None for sides so ill-conditioned that C has fewer digits than certificates allow for.
        """
        if isinstance(self.inner, SpectralSet) and all(side.isometric for side in self.sides):
            return op, self.inner
        return self.inner.as_spectral(self.core(op)) if self.condition <= _WELL else None

    def excess(self, op: LowRankOperator) -> float:
        core = self.core(op)
        return max(self.inner.excess(core), self._outside(op, core) / self._gain)

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether C is a member and what is outside the column spaces is rounding of W.

        Sides may make W much larger than C: each is compared with its own size.
        """
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        core = self.core(op)
        if not self.inner.contains(core, rtol=rtol * self.condition):
            return False
        size = max(self.unit(op) * self._gain, float(op.detach().schatten_norm(math.inf)))
        return self._outside(op, core) <= rtol * size

    def _outside(self, op: LowRankOperator, core: LowRankOperator) -> float:
        if all(side.onto for side in self.sides):
            return 0.0
        outside = product_svd(*(op.detach().to(dtype=torch.float64) - self.embed(core)))[1]
        return float(lp_norm(outside, 2))

    def unit(self, op: LowRankOperator) -> float:
        """Return the inner unit of C times the condition numbers of A and B."""
        return self.condition * self.inner.unit(self.core(op))

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the member whose C is nearest, in the norm of the inner projection, to C of W.

        Between orthonormal frames that is the nearest W in the Frobenius norm, if the inner
        projection is; between weights, in the weighted one.
        """
        return self.embed(self.inner.project(self.core(op))).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        sides = zip(self.sides, shape, strict=True)
        k, ell = (size if side.cols is None else side.cols for side, size in sides)
        op = self.inner.sample((k, ell), generator=generator, dtype=torch.float64)
        return self.embed(op).to(dtype=torch.get_default_dtype() if dtype is None else dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return the member with the smallest ``<gradient, W>``, from ``A^T gradient B``."""
        A, B = self.sides
        if isinstance(gradient, LowRankOperator):
            left, scale, right = (x.double() for x in gradient)
            core = LowRankOperator(A.adjoint(left), scale, B.adjoint(right))
            return self.embed(self.inner.lmo(core)).to(dtype=gradient.dtype)
        dtype = gradient.dtype if isinstance(gradient, Tensor) else torch.float64
        reduced = A.reduced(B.reduced(gradient.T).T)
        made = torch.from_numpy(reduced) if isinstance(reduced, np.ndarray) else reduced
        return self.embed(self.inner.lmo(cast("Gradient", made))).to(dtype=dtype)


@dataclass(frozen=True, eq=False)
class WeightedSet(LinearImage):
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
    OptionError
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
                raise OptionError(f"{name} must be positive and finite; got {_range(weights)}")

    def __repr__(self) -> str:
        rows, cols = _range(self.row_weights), _range(self.col_weights)
        return f"WeightedSet(inner={self.inner}, row_weights={rows}, col_weights={cols})"

    @property
    def unweighted(self) -> tuple[FeasibleSet, Tensor | None, Tensor | None]:
        """The inner set, and the weights of rows and columns."""
        return self.inner, self.row_weights, self.col_weights

    @property
    def of_singular_values(self) -> bool:
        """Whether singular values decide about members of the inner set."""
        return self.inner.unweighted[0] is self.inner and self.inner.of_singular_values

    @cached_property
    def sides(self) -> tuple[Side, Side]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return diagonal(self.row_weights), diagonal(self.col_weights)


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
class NestedSet(LinearImage):
    r""":math:`\{U C V^T : C \in \text{inner}\}` for orthonormal U (m x k) and V (n x l).

    Unitarily invariant norms of a member are those of C. Frames rounded to their dtype stand for
    the nearest orthonormal ones, which have the same column spaces.

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
        return f"NestedSet(inner={self.inner}, left={_size(self.left)}, right={_size(self.right)})"

    @cached_property
    def sides(self) -> tuple[Side, Side]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Frame(nearest_frame(self.left)), Frame(nearest_frame(self.right))


@dataclass(frozen=True, eq=False)
class ImageSet(LinearImage):
    r""":math:`\{A C B^T : C \in \text{inner}\}` for features A (m x f) and B (n x g).

    Parameters
    ----------
    inner : SpectralSet, or any set if A and B have independent columns
    left : Tensor, shape (m, f), or None
        A, dense or sparse; finite. None stands for the identity.
    right : Tensor, shape (n, g), or None
        B.

    Examples
    --------
    >>> same = ImageSet(SchattenBall(1, 1.0, 1), torch.ones(4, 1), None)
    >>> same.contains(LowRankOperator.from_dense(torch.ones(4, 2) / 2))
    True
    """

    inner: FeasibleSet
    left: Tensor | None
    right: Tensor | None

    def __repr__(self) -> str:
        return f"ImageSet(inner={self.inner}, left={_size(self.left)}, right={_size(self.right)})"

    @cached_property
    def sides(self) -> tuple[Side, Side]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return features(self.left), features(self.right)

    @property
    def svds(self) -> tuple[FeatureSVD | None, FeatureSVD | None]:
        """The thin SVDs of A and B, computed on first use; None for the identity."""
        left, right = (x.svd if isinstance(x, Features) else None for x in self.sides)
        return left, right


def _range(weights: Tensor | None) -> str:
    if weights is None:
        return "None"
    return f"{weights.numel()} values from {float(weights.min())!r} to {float(weights.max())!r}"


def _size(x: Tensor | None) -> str:
    return "identity" if x is None else f"{len(x)} x {x.shape[1]}"
