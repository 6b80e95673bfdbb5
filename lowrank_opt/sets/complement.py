"""Members of a set that vanish on given subspaces: :math:`Q^T W = 0` and :math:`W P = 0`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import lp_norm, orthonormal_columns, product_svd, project_out
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, relative_tolerance

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from lowrank_opt.sets.base import Gradient


@dataclass(frozen=True, eq=False)
class ComplementSet(FeasibleSet):
    r""":math:`\{W \in \text{inner} : Q^T W = 0,\ W P = 0\}` for orthonormal Q (m x a), P (n x b).

    The inner set has to be spectral: then the projection on the subspaces' complements lowers
    every singular value, :math:`\sigma_i((I - QQ^T) W (I - PP^T)) \le \sigma_i(W)`, and commutes
    with the inner projection, which keeps singular vectors. The excess is the larger of that of
    the inner set and of what W has on the subspaces (in the Frobenius norm).

    Parameters
    ----------
    inner : SpectralSet
    left : Tensor, shape (m, a), or None
        Q; None stands for no condition.
    right : Tensor, shape (n, b), or None
        P.

    Raises
    ------
    OptionError
        If the inner set is not spectral.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> kept = ComplementSet(SchattenBall(2, 1.0, 2), torch.eye(3, 1), None)
    >>> inside = torch.diag(torch.tensor([0.0, 0.6, 0.8]))
    >>> kept.contains(LowRankOperator.from_dense(inside))
    True
    >>> kept.contains(LowRankOperator.from_dense(inside.flip(0)))
    False
    """

    inner: FeasibleSet
    left: Tensor | None
    right: Tensor | None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, SpectralSet):
            raise OptionError(
                "a complement needs a set that depends on singular values alone, which weights, "
                f"frames and offsets do not leave it; got {self.inner}: put the complement inside, "
                "and Offset(...) around it"
            )

    def __repr__(self) -> str:
        sizes = (
            "none" if x is None else f"{len(x)} x {x.shape[1]}" for x in (self.left, self.right)
        )
        return f"ComplementSet(inner={self.inner}, left={next(sizes)}, right={next(sizes)})"

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rank bound of the inner set, or the dimension that a subspace leaves."""
        left = [len(x) - x.shape[1] for x in (self.left, self.right) if x is not None]
        return min(self.inner.rank, *left) if left else self.inner.rank

    @property
    def norm_name(self) -> str:
        """The norm that the inner set bounds."""
        return self.inner.norm_name

    @property
    def bound(self) -> str:
        """That of the inner set."""
        return self.inner.bound

    @property
    def frobenius_bound(self) -> float:
        """That of the inner set."""
        return self.inner.frobenius_bound

    def with_rank(self, rank: int) -> ComplementSet:
        """Return the members of rank at most `rank`."""
        return ComplementSet(self.inner.with_rank(rank), self.left, self.right)

    def scaled(self, factor: float) -> ComplementSet:
        """Return the set of all ``factor * W``, factor > 0."""
        return ComplementSet(self.inner.scaled(factor), self.left, self.right)

    def kept(self, op: LowRankOperator) -> LowRankOperator:
        """Return ``(I - Q Q^T) W (I - P P^T)`` in float64."""
        left, scale, right = (x.double() for x in op)
        return LowRankOperator(project_out(left, self.left), scale, project_out(right, self.right))

    def as_spectral(self, op: LowRankOperator) -> tuple[LowRankOperator, SpectralSet] | None:
        """Return what the inner set makes of W: norm and rank, not the subspaces."""
        return self.inner.as_spectral(op)

    def excess(self, op: LowRankOperator) -> float:
        return max(self.inner.excess(op.detach()), self.outside(op))

    def outside(self, op: LowRankOperator) -> float:
        """Return the Frobenius norm of what W has on the subspaces."""
        op = op.detach().to(dtype=torch.float64)
        return float(lp_norm(product_svd(*(op - self.kept(op)))[1], 2))

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether W is in the inner set and has rounding only on the subspaces.

        Rounding of the stored factors is relative to their rank-one terms, which may cancel in W.
        """
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        size = max(self.unit(op), float(term_sizes(op.detach()).sum()))
        return self.inner.contains(op, rtol=rtol) and self.outside(op) <= rtol * size

    def unit(self, op: LowRankOperator) -> float:
        return self.inner.unit(op)

    def project(self, op: LowRankOperator) -> LowRankOperator:
        """Return the nearest member in the Frobenius norm: both projections commute."""
        nearest = self.inner.project(self.kept(op.detach()))
        # Singular vectors of a large matrix have its rounding on the subspaces.
        return self.kept(nearest).to(dtype=op.dtype)

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        op = self.inner.sample(shape, generator=generator, dtype=torch.float64)
        U, sigma, V = op.thin_svd()
        k = min(self.rank, len(sigma))
        # Frames of the complements around the same values: boundary points stay on the boundary.
        left, right = (
            orthonormal_columns(project_out(x[:, :k], Q), k)
            for x, Q in ((U, self.left), (V, self.right))
        )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return LowRankOperator(left, sigma[:k], right).to(dtype=dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return the inner answer to the gradient's part outside of the subspaces."""
        if isinstance(gradient, LowRankOperator):
            return self.inner.lmo(self.kept(gradient)).to(dtype=gradient.dtype)
        if isinstance(gradient, Tensor) and gradient.layout == torch.strided:
            half = project_out(gradient.double(), self.left)
            part = project_out(half.mT, self.right).mT
            return self.inner.lmo(part).to(dtype=gradient.dtype)
        return self.inner.lmo(self._leading_part(gradient))

    def _leading_part(self, gradient: Tensor | sp.spmatrix | sp.sparray) -> LowRankOperator:
        """Return the leading triples of a sparse gradient's part, by products with it alone."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator, svds

        G = _to_scipy(gradient)
        (m, n), inner = G.shape, self.inner
        assert isinstance(inner, SpectralSet), "checked when the set was made"

        def forward(x: NDArray[np.float64]) -> NDArray[np.float64]:
            y = G @ _outside(x, self.right)
            return _outside(y, self.left)

        def backward(y: NDArray[np.float64]) -> NDArray[np.float64]:
            x = G.T @ _outside(y, self.left)
            return _outside(x, self.right)

        part = LinearOperator((m, n), matvec=forward, rmatvec=backward, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(min(m, n))
        U, sigma, Vh = svds(part, k=min(inner.lmo_rank, m - 1, n - 1), v0=start)
        return LowRankOperator(*(torch.from_numpy(x.copy()) for x in (U, sigma, Vh.T)))


def _outside(x: NDArray[np.float64], basis: Tensor | None) -> NDArray[np.float64]:
    return project_out(torch.from_numpy(x.reshape(len(x), -1)), basis).numpy()


def _to_scipy(gradient: Tensor | sp.spmatrix | sp.sparray) -> sp.csr_array:
    import scipy.sparse as sparse

    if not isinstance(gradient, Tensor):
        return sparse.csr_array(gradient).astype("float64")
    coo = gradient.detach().cpu().to_sparse_coo().coalesce()
    i, j = coo.indices().numpy()
    return sparse.csr_array((coo.values().double().numpy(), (i, j)), tuple(gradient.shape))


def term_sizes(op: LowRankOperator) -> Tensor:
    """Return the norms of the rank-one terms, shape (r,), in float64."""
    left, scale, right = (x.double() for x in op)
    return lp_norm(left.mT, 2) * scale.abs() * lp_norm(right.mT, 2)
