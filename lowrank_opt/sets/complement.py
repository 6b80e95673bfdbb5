"""Members of a set that vanish on given subspaces: :math:`Q^T W = 0` and :math:`W P = 0`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import lp_norm, orthonormal_columns, project_out
from lowrank_opt.linalg.svd import subspace_svd, to_scipy
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets.base import FeasibleSet, SpectralSet, relative_tolerance
from lowrank_opt.sets.linear_image import LinearImage
from lowrank_opt.sets.sides import Identity, Side

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from lowrank_opt.sets.base import Gradient


@dataclass(frozen=True, eq=False)
class Outside(Side):
    r"""The projection :math:`I - Q Q^T` out of a subspace, done twice, in float64.

    Its singular values are 0 and 1: among all C with the same ``A C``, the one pulled back is W
    itself.

    Examples
    --------
    >>> Outside(torch.eye(3, 1)).pull(torch.ones(3, 1).double()).flatten()
    tensor([0., 1., 1.], dtype=torch.float64)
    """

    basis: Tensor

    @property
    def rows(self) -> int:
        return len(self.basis)

    @property
    def cols(self) -> int:
        return len(self.basis)

    @property
    def rank(self) -> int:
        """What the subspace leaves."""
        return len(self.basis) - self.basis.shape[1]

    @property
    def independent(self) -> bool:
        return self.basis.shape[1] == 0

    @property
    def matrix(self) -> Tensor:
        eye = torch.eye(len(self.basis), dtype=torch.float64, device=self.basis.device)
        return project_out(eye, self.basis)

    def times(self, x: Tensor) -> Tensor:
        return project_out(x.double(), self.basis).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.times(y)

    def pull(self, y: Tensor) -> Tensor:
        return self.times(y)

    def same(self, other: Side) -> bool:
        return isinstance(other, Outside) and torch.equal(self.basis, other.basis)


def outside(basis: Tensor | None) -> Side:
    """Return the side of a protected subspace; None stands for none."""
    return Identity() if basis is None else Outside(basis)


@dataclass(frozen=True, eq=False)
class ComplementSet(LinearImage):
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
        left, right = (
            "none" if x is None else f"{len(x)} x {x.shape[1]}" for x in (self.left, self.right)
        )
        return f"ComplementSet(inner={self.inner}, left={left}, right={right})"

    @cached_property
    def sides(self) -> tuple[Side, Side]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return outside(self.left), outside(self.right)

    def contains(self, op: LowRankOperator, *, rtol: float | None = None) -> bool:
        """Return whether W is in the inner set and has rounding only on the subspaces.

        Rounding of the stored factors is relative to their rank-one terms, which may cancel in W.
        """
        if not all(bool(torch.isfinite(x).all()) for x in op):
            return False
        rtol = relative_tolerance(op.dtype, self.rank) if rtol is None else rtol
        size = max(self.unit(op), float(term_sizes(op.detach()).sum()))
        inside = self.inner.contains(op, rtol=rtol)
        return inside and self._outside(op, self.core(op)) <= rtol * size

    def sample(
        self,
        shape: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> LowRankOperator:
        op = self.inner.sample(shape, generator=generator, dtype=torch.float64)
        U, sigma, V = op.thin_svd()
        k, (A, B) = min(self.rank, len(sigma)), self.sides
        # Frames of the complements around the same values: boundary points stay on the boundary.
        left, right = (orthonormal_columns(x, k) for x in (A.times(U[:, :k]), B.times(V[:, :k])))
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return LowRankOperator(left, sigma[:k], right).to(dtype=dtype)

    def lmo(self, gradient: Gradient) -> LowRankOperator:
        """Return the inner answer to the gradient's part outside of the subspaces."""
        if isinstance(gradient, LowRankOperator):
            return super().lmo(gradient)
        if isinstance(gradient, Tensor) and gradient.layout == torch.strided:
            return super().lmo(gradient)
        # The part of a sparse gradient is dense, but its products are not dear.
        return self.embed(self.inner.lmo(self._leading_part(gradient)))

    def _leading_part(self, gradient: Tensor | sp.spmatrix | sp.sparray) -> LowRankOperator:
        """Return the leading triples of a sparse gradient's part, by products with it alone."""
        import numpy as np
        from scipy.sparse.linalg import ArpackError, LinearOperator, svds

        G = to_scipy(gradient)
        (m, n), inner = G.shape, self.inner
        assert isinstance(inner, SpectralSet), "checked when the set was made"
        if min(m, n) <= inner.lmo_rank + 1:
            # The dense matrix is no larger than the factors.
            dense = torch.from_numpy(G.toarray())
            return self.embed(LowRankOperator.from_dense(dense))

        def forward(x: NDArray[np.float64]) -> NDArray[np.float64]:
            y = G @ _parted(x, self.right)
            return _parted(y, self.left)

        def backward(y: NDArray[np.float64]) -> NDArray[np.float64]:
            x = G.T @ _parted(y, self.left)
            return _parted(x, self.right)

        part = LinearOperator((m, n), matvec=forward, rmatvec=backward, dtype=np.float64)
        rng = np.random.default_rng(0)
        if not forward(rng.standard_normal(n)).any():
            # ARPACK refuses a product that vanishes.
            eye = (torch.eye(size, 1, dtype=torch.float64) for size in (m, n))
            return LowRankOperator(next(eye), torch.zeros(1, dtype=torch.float64), next(eye))
        start = rng.standard_normal(min(m, n))
        try:
            U, sigma, Vh = svds(part, k=inner.lmo_rank, v0=start)
        except ArpackError:
            return LowRankOperator(*subspace_svd(part, inner.lmo_rank))
        return LowRankOperator(*(torch.from_numpy(x.copy()) for x in (U, sigma, Vh.T)))


def _parted(x: NDArray[np.float64], basis: Tensor | None) -> NDArray[np.float64]:
    return project_out(torch.from_numpy(x.reshape(len(x), -1)), basis).numpy()


def term_sizes(op: LowRankOperator) -> Tensor:
    """Return the norms of the rank-one terms, shape (r,), in float64."""
    left, scale, right = (x.double() for x in op)
    return lp_norm(left.mT, 2) * scale.abs() * lp_norm(right.mT, 2)
