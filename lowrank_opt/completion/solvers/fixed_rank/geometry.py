r"""The matrices of one rank as a manifold embedded in the m x n matrices.

A point is :math:`W = U \,\mathrm{diag}(s)\, V^T` with orthonormal frames. A tangent vector there is
:math:`\xi = U M V^T + U_p V^T + U V_p^T` with :math:`U^T U_p = 0`, :math:`V^T V_p = 0`, stored as
(M, U_p, V_p), in which the Frobenius inner product of matrices is that of the parts. Nothing of
size m x n occurs; everything is O((m + n) r^2).

References
----------
Vandereycken (2013), Low-rank matrix completion by Riemannian optimization, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.linalg import product_svd
from lowrank_opt.operator import LowRankOperator


@dataclass(frozen=True, eq=False)
class Point:
    """A matrix ``U diag(s) V^T``.

    Parameters
    ----------
    U : Tensor, shape (m, r), orthonormal columns
    s : Tensor, shape (r,), decreasing, nonnegative
    V : Tensor, shape (n, r), orthonormal columns
    """

    U: Tensor
    s: Tensor
    V: Tensor

    def __post_init__(self) -> None:
        # As a checkpoint brings them back: in another order of memory, products may be summed in
        # another order.
        for name in ("U", "s", "V"):
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``U diag(s)`` and ``V``."""
        return self.U * self.s, self.V

    def project(self, along_rows: Tensor, along_cols: Tensor) -> Tangent:
        """Project a matrix G, known by ``G V`` and ``G^T U``, onto the tangent space.

        Parameters
        ----------
        along_rows : Tensor, shape (m, r)
        along_cols : Tensor, shape (n, r)

        References
        ----------
        Vandereycken (2013), algorithm 2.
        """
        U, V = self.U, self.V
        M = U.mT @ along_rows
        return Tangent(M, along_rows - U @ M, along_cols - V @ M.mT)

    def move(self, tangent: Tangent, step: float = 1.0) -> Point:
        """Return the nearest matrix of this rank to ``W + step * tangent``: the retraction.

        References
        ----------
        Vandereycken (2013), algorithm 6; here without dividing by small parts of the tangent.
        """
        U, V = self.U, self.V
        r = len(self.s)
        left = torch.cat((U * self.s + step * (U @ tangent.M + tangent.Up), U), dim=1)
        right = torch.cat((V, step * tangent.Vp), dim=1)
        P, sigma, Q = product_svd(left, left.new_ones(2 * r), right)
        return Point(P[:, :r], sigma[:r], Q[:, :r])

    def operator(self) -> LowRankOperator:
        """Return the matrix."""
        return LowRankOperator(self.U, self.s, self.V)


@dataclass(frozen=True, eq=False)
class Tangent:
    """A tangent vector at a `Point`, in its frames.

    Parameters
    ----------
    M : Tensor, shape (r, r)
    Up : Tensor, shape (m, r), orthogonal to U
    Vp : Tensor, shape (n, r), orthogonal to V
    """

    M: Tensor
    Up: Tensor
    Vp: Tensor

    def dot(self, other: Tangent) -> float:
        """Return the Frobenius inner product of the two matrices."""
        pairs = zip(self.parts, other.parts, strict=True)
        return sum(float(torch.sum(a * b)) for a, b in pairs)

    def plus(self, other: Tangent, factor: float = 1.0) -> Tangent:
        """Return ``self + factor * other``, at one point."""
        return Tangent(*(a + factor * b for a, b in zip(self.parts, other.parts, strict=True)))

    def times(self, factor: float) -> Tangent:
        """Return ``factor * self``."""
        return Tangent(*(factor * a for a in self.parts))

    def norm(self) -> float:
        """Return the Frobenius norm of the matrix."""
        return math.sqrt(self.dot(self))

    def factors(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return left (m, 2r) and right (n, 2r) whose product is the matrix."""
        left = torch.cat((at.U @ self.M + self.Up, at.U), dim=1)
        return left, torch.cat((at.V, self.Vp), dim=1)

    def transport(self, at: Point, to: Point) -> Tangent:
        """Project the matrix onto the tangent space of another point.

        References
        ----------
        Vandereycken (2013), algorithm 5.
        """
        left, right = self.factors(at)
        return to.project(left @ (right.mT @ to.V), right @ (left.mT @ to.U))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """M, Up and Vp."""
        return self.M, self.Up, self.Vp
