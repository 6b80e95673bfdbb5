"""Updates that are kept out of given subspaces, whatever the inner parameterization."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lowrank_opt.errors import RankError, ShapeError, TargetError
from lowrank_opt.linalg import extend_basis, nearest_frame
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.parameterizations.between import Between
from lowrank_opt.parameterizations.wide import WideBuffers
from lowrank_opt.sets import ComplementSet
from lowrank_opt.sets.complement import outside
from lowrank_opt.sets.sides import Side


class Complement(WideBuffers, Between):
    r""":math:`W = (I - Q Q^T)\, C\, (I - P P^T)`, C any inner map with a set of singular values.

    The layer's outputs on protected inputs stay what they were, :math:`W p = 0` for p in the span
    of P, and its outputs have nothing new in the span of Q. **Set**: the members of the inner set
    that vanish there, a `ComplementSet`; *into*, because projections lower every singular value;
    *onto*, complete if the inner map is, because such a member is its own preimage.

    Projected in float64, twice, and rounded once to the dtype of C: for p in the span of the stored
    P, :math:`|W p| \le 4 u \, |p| \sum_i |s_i| |l_i| |r_i|`, u the unit roundoff of that dtype and
    the sum over the rank-one terms. Merging adds the rounding of :math:`W_0 + W`.

    Parameters
    ----------
    inner : Parameterization, m x n
    left : Tensor, shape (m, a), optional
        Its columns span what outputs must not change in; need not be orthonormal or independent.
    right : Tensor, shape (n, b), optional
        Its columns span the inputs to be protected.

    Raises
    ------
    ShapeError
        If a matrix has another number of rows.
    TargetError
        If a matrix is not finite.
    RankError
        If a subspace leaves no direction.
    OptionError
        If the inner set depends on more than singular values.

    References
    ----------
    O-LoRA (arXiv 2310.14152), InfLoRA (arXiv 2404.00228), OPLoRA (arXiv 2510.13003) and others;
    `lowrank_opt.parameterizations.published.subspaces` builds them.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> seen = torch.randn(6, 2)
    >>> update = Complement(NBLoRA((5, 6), rank=3, radius=1.0), right=seen)
    >>> _ = update.assign(torch.randn(5, 6), project=True)
    >>> bool((update() @ seen).abs().max() < 1e-6), update.feasible_set.rank
    (True, 3)
    """

    wide: ClassVar[tuple[str, ...]] = ("left", "right")

    def __init__(
        self, inner: Parameterization, left: Tensor | None = None, right: Tensor | None = None
    ) -> None:
        super().__init__(inner, inner.shape)
        like = next(inner.parameters())
        # Bases rounded to half precision would not be orthonormal to more than 1e-3.
        dtype = torch.promote_types(like.dtype, torch.float32)
        for name, x, size in (("left", left, self.shape[0]), ("right", right, self.shape[1])):
            basis = None if x is None else _basis(x, size, name).to(like.device, dtype)
            self.register_buffer(name, basis)
        self.left: Tensor | None
        self.right: Tensor | None
        self.rank: int = self.image.rank

    @property
    def sides(self) -> tuple[Side, Side]:
        return outside(self.left), outside(self.right)

    @property
    def image(self) -> ComplementSet:
        return ComplementSet(self.inner.feasible_set, self.left, self.right)

    def converted(self, buffer: Tensor) -> Tensor:
        """Return a basis, orthonormal again."""
        return nearest_frame(buffer)

    def extended(self, *, left: Tensor | None = None, right: Tensor | None = None) -> Complement:
        """Return the same inner map, shared, with subspaces that hold these columns too.

        Parameters
        ----------
        left : Tensor, shape (m, k), optional
        right : Tensor, shape (n, k), optional

        Examples
        --------
        >>> from lowrank_opt import Factored
        >>> one = Complement(Factored((3, 4), 1), right=torch.eye(4, 1))
        >>> one.extended(right=torch.eye(4, 2)).right.shape
        torch.Size([4, 2])
        """
        pairs = ((self.left, left), (self.right, right))
        Q, P = (old if new is None else extend_basis(old, new) for old, new in pairs)
        return Complement(self.inner, Q, P)


def _basis(x: Tensor, size: int, name: str) -> Tensor:
    """Return an orthonormal basis of the columns; x itself if they are orthonormal already."""
    if x.ndim != 2 or len(x) != size:
        raise ShapeError(
            f"{name} must have {size} rows, one column a direction; got {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise TargetError(f"{name} must be finite; got NaN or infinity: remove them")
    Q = x.detach().double()
    gram = Q.mT @ Q - torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)
    orthonormal = float(torch.linalg.matrix_norm(gram)) <= 64 * torch.finfo(x.dtype).eps
    basis = nearest_frame(Q) if orthonormal else extend_basis(None, x)
    if basis.shape[1] >= size:
        raise RankError(
            f"{name} must leave a direction of {size}; got a subspace of dimension "
            f"{basis.shape[1]}: protect less, or stop training this weight"
        )
    return basis
