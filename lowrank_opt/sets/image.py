r"""The image of a set under features: matrices :math:`A C B^T` with C in an inner set.

The features need not have independent columns. Among all C with the same :math:`A C B^T` the one
that `core` takes, :math:`C_0 = A^+ W (B^+)^T = P_A C P_B` with orthogonal projectors P, has the
smallest singular values one by one, :math:`\sigma_i(P_A C P_B) \le \sigma_i(C)`. Hence W is in the
image of a spectral set if and only if :math:`C_0` is in that set, up to what is outside the column
spaces: membership is decided exactly, by one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.linalg import lp_norm, product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, RankAtMost, SpectralSet, relative_tolerance
from lowrank_opt.sets.derived import NestedSet, ShiftedSet, WeightedSet

if TYPE_CHECKING:
    import scipy.sparse as sp

    from lowrank_opt.sets.base import Gradient


# Rounding on the way back that the margins of certificates cover.
_WELL = 16.0


class FeatureSVD(NamedTuple):
    """The thin SVD ``basis diag(values) weights^T`` of features, cut to their rank; float64.

    Parameters
    ----------
    basis : Tensor, shape (m, k)
    values : Tensor, shape (k,)
        Positive, decreasing.
    weights : Tensor, shape (f, k)
    """

    basis: Tensor
    values: Tensor
    weights: Tensor

    @property
    def condition(self) -> float:
        """Largest over smallest singular value."""
        return float(self.values[0] / self.values[-1]) if len(self.values) else 1.0


def feature_svd(features: Tensor) -> FeatureSVD:
    """Return the thin SVD of features, dense or sparse; a sparse m x f matrix is made dense.

    Singular values below ``eps max(m, f)`` times the largest count as zero.

    Examples
    --------
    >>> feature_svd(torch.tensor([[2.0, 2.0], [0.0, 0.0]])).weights.shape
    torch.Size([2, 1])
    """
    A = features.detach().double()
    U, sigma, Vh = torch.linalg.svd(A.to_dense() if A.is_sparse else A, full_matrices=False)
    k = int((sigma > max(A.shape) * torch.finfo(A.dtype).eps * sigma[:1]).sum())
    return FeatureSVD(U[:, :k], sigma[:k], Vh[:k].mT)


@dataclass(frozen=True, eq=False)
class ImageSet(FeasibleSet):
    r""":math:`\{A C B^T : C \in \text{inner}\}` for features A (m x f) and B (n x g).

    The excess is the larger of the excess of :math:`A^+ W (B^+)^T` over the inner set and of the
    part of W outside the two column spaces (in the Frobenius norm, divided by
    :math:`\|A\| \|B\|`). The tolerance is that of the inner set times the condition numbers of A
    and B: so much may rounding of W be enlarged on the way back. Norms of W itself are at most
    :math:`\|A\|_2 \|B\|_2` times those of C.

    Parameters
    ----------
    inner : SpectralSet, or any set if A and B have independent columns
    left : Tensor, shape (m, f), or None
        A, dense or sparse; finite. None stands for the identity.
    right : Tensor, shape (n, g), or None
        B.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> same = ImageSet(SchattenBall(1, 1.0, 1), torch.ones(4, 1), None)
    >>> same.contains(LowRankOperator.from_dense(torch.ones(4, 2) / 2))
    True
    """

    inner: FeasibleSet
    left: Tensor | None
    right: Tensor | None

    def __repr__(self) -> str:
        left, right = ("identity" if x is None else _size(x) for x in (self.left, self.right))
        return f"ImageSet(inner={self.inner}, left={left}, right={right})"

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set, or the number of rows or columns if that is less."""
        sides = [len(x) for x in (self.left, self.right) if x is not None]
        return min((self.inner.rank, *sides))

    @property
    def norm_name(self) -> str:
        name = self.inner.norm_name
        return name if name == "none" else f"{name} between features"

    @property
    def bound(self) -> str:
        bound = self.inner.bound
        return bound if bound == "none" else f"{bound} between features"

    @property
    def frobenius_bound(self) -> float:
        return self._gain * self.inner.frobenius_bound

    def with_rank(self, rank: int) -> ImageSet:
        return replace(self, inner=self.inner.with_rank(rank))

    def scaled(self, factor: float) -> ImageSet:
        return replace(self, inner=self.inner.scaled(factor))

    @cached_property
    def svds(self) -> tuple[FeatureSVD | None, FeatureSVD | None]:
        """The thin SVDs of A and B, computed on first use; None for the identity."""
        left, right = (None if x is None else feature_svd(x) for x in (self.left, self.right))
        return left, right

    @property
    def condition(self) -> float:
        """The product of the condition numbers of A and B."""
        return math.prod(x.condition for x in self.svds if x is not None)

    def core(self, op: LowRankOperator) -> LowRankOperator:
        """Return ``A^+ W (B^+)^T`` as an operator of the inner shape, in float64."""
        (left, scale, right), (a, b) = (x.double() for x in op), self.svds
        return LowRankOperator(_pulled(a, left), scale, _pulled(b, right))

    def embed(self, core: LowRankOperator) -> LowRankOperator:
        """Return ``A C B^T`` in float64."""
        left, scale, right = (x.double() for x in core)
        return LowRankOperator(_pushed(self.left, left), scale, _pushed(self.right, right))

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return what the inner set makes of C: norm and rank, not the column spaces.

        None for features so ill-conditioned that C has fewer digits than certificates allow for.
        """
        return self.inner.as_spectral(self.core(op)) if self.condition <= _WELL else None

    def excess(self, op: LowRankOperator) -> float:
        core = self.core(op.detach())
        return max(self.inner.excess(core), self._outside(op.detach(), core) / self._gain)

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether C is a member and what is outside the column spaces is rounding of W."""
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        op, core = op.detach(), self.core(op.detach())
        size = max(self.unit(op) * self._gain, float(op.schatten_norm(math.inf)))
        inside = self.inner.excess(core) <= rtol * self.unit(op)
        return inside and self._outside(op, core) <= rtol * size

    def unit(self, op: LowRankOperator) -> float:
        """Return the inner unit of C times the condition numbers of A and B."""
        return self.condition * self.inner.unit(self.core(op.detach()))

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the member whose C is nearest, in the norm of the inner projection, to C of W."""
        return self.embed(self.inner.project(self.core(op.detach()))).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        sides = zip((self.left, self.right), shape, strict=True)
        f, g = (size if x is None else x.shape[1] for x, size in sides)
        op = self.inner.sample((f, g), generator=generator, dtype=dtype)
        return self.embed(op).to(dtype=op.dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return the member with the smallest ``<gradient, W>``, from ``A^T gradient B``.

        Needs no SVD of the features.
        """
        if isinstance(gradient, LowRankOperator):
            left, scale, right = (x.double() for x in gradient)
            core = LowRankOperator(_adjoint(self.left, left), scale, _adjoint(self.right, right))
            return self.embed(self.inner.lmo(core)).to(dtype=gradient.dtype)
        dtype = gradient.dtype if isinstance(gradient, Tensor) else torch.float64
        return self.embed(self.inner.lmo(self._core_gradient(gradient))).to(dtype=dtype)

    def _core_gradient(self, gradient: Tensor | sp.spmatrix | sp.sparray) -> Gradient:
        if isinstance(gradient, Tensor):
            half = _adjoint(self.right, gradient.double().mT).mT
            return _adjoint(self.left, half)
        half = gradient if self.right is None else gradient @ _array(self.right)
        product = half if self.left is None else _array(self.left).T @ half
        return torch.from_numpy(product) if isinstance(product, np.ndarray) else product

    def _outside(self, op: LowRankOperator, core: LowRankOperator) -> float:
        outside = product_svd(*(op.to(dtype=torch.float64) - self.embed(core)))[1]
        return float(lp_norm(outside, 2))

    @property
    def _gain(self) -> float:
        """By how much features enlarge a matrix at most; one where they are all zero."""
        norms = (float(x.values[0]) for x in self.svds if x is not None and len(x.values))
        return math.prod(norms)


def image_of(inner: FeasibleSet, left: Tensor | None, right: Tensor | None) -> FeasibleSet:
    """Return the set of all ``A C B^T`` with C in `inner`, a set of this package.

    Weights, frames and offsets of `inner` move into the features, which leaves a spectral set. Of
    another kind of set with dependent features only the rank is declared.
    """
    if left is None and right is None:
        return inner
    match inner:
        case WeightedSet(inner=core, row_weights=a, col_weights=b):
            return image_of(core, _times(left, a), _times(right, b))
        case NestedSet(inner=core, left=U, right=V) | ImageSet(inner=core, left=U, right=V):
            return image_of(core, _product(left, U), _product(right, V))
        case ShiftedSet(inner=core, offset=offset):
            moved = ImageSet(core, left, right).embed(offset)
            return ShiftedSet(image_of(core, left, right), moved)
        case _:
            independent = has_independent_columns(left) and has_independent_columns(right)
            exact = isinstance(inner, SpectralSet) or independent
            image = ImageSet(inner, left, right)
            return image if exact else RankAtMost(image.rank)


def has_independent_columns(features: Tensor | None) -> bool:
    """Return whether features have full column rank; None is the identity."""
    if features is None:
        return True
    f = features.shape[1]
    return f <= len(features) and len(feature_svd(features).values) == f


def _pulled(svd: FeatureSVD | None, x: Tensor) -> Tensor:
    return x if svd is None else svd.weights @ ((svd.basis.mT @ x) / svd.values.unsqueeze(1))


def _pushed(features: Tensor | None, x: Tensor) -> Tensor:
    return x if features is None else features.detach().double() @ x


def _adjoint(features: Tensor | None, x: Tensor) -> Tensor:
    return x if features is None else features.detach().double().t() @ x


def _times(features: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """Return the features with weighted columns; sparse if they are, or if they are None."""
    if weights is None:
        return features
    w = weights.detach().double()
    if features is None:
        index = torch.arange(len(w), device=w.device).expand(2, -1)
        return torch.sparse_coo_tensor(index, w, (len(w), len(w)), check_invariants=False)
    A = features.detach().double()
    if not A.is_sparse:
        return A * w
    A = A.coalesce()
    values, index = A.values() * w[A.indices()[1]], A.indices()
    return torch.sparse_coo_tensor(index, values, A.shape, check_invariants=False)


def _product(features: Tensor | None, x: Tensor | None) -> Tensor | None:
    """Return the product of features with others; dense if there are two."""
    if features is None or x is None:
        return x if features is None else features
    B = x.detach().double()
    return features.detach().double() @ (B.to_dense() if B.is_sparse else B)


def _array(features: Tensor) -> sp.csr_array | NDArray[np.float64]:
    A = features.detach().double().cpu()
    if not A.is_sparse:
        return A.numpy()
    from scipy.sparse import coo_array

    A = A.coalesce()
    i, j = A.indices().numpy()
    return coo_array((A.values().numpy(), (i, j)), shape=tuple(A.shape)).tocsr()


def _size(x: Tensor) -> str:
    return f"{len(x)} x {x.shape[1]}"
