"""Nested SVD: any inner parameterization between frozen orthonormal frames."""

from typing import ClassVar

import torch
from torch import Tensor

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.linalg import leading_svd, nearest_frame
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization, orthonormal_like
from lowrank_opt.parameterizations.between import Between
from lowrank_opt.parameterizations.wide import WideBuffers
from lowrank_opt.sets import NestedSet, relative_tolerance
from lowrank_opt.sets.sides import Frame, Side


class NestedSVD(WideBuffers, Between):
    r""":math:`W = U C V^T` with frozen orthonormal U (m x k), V (n x l), C any inner map.

    Set: ``{U C V^T : C in the inner set}``; complete if the inner map is. Every unitarily
    invariant norm of W is that of C, so the inner bounds carry over exactly (in floating point, to
    a few units of rounding of the dtype of the frames), and so does the rank.

    Parameters
    ----------
    outer : Tensor, LowRankOperator, or pair of Tensors
        A weight of shape (m, n), dense or factored, whose leading singular vectors become the
        frames; or the frames ``(U, V)`` themselves.
    inner : Parameterization
        Of shape ``(k, l)``.

    Raises
    ------
    ShapeError
        If the inner shape does not fit into the outer one.
    TargetError
        If the weight is not finite, or given frames are not orthonormal to the tolerance of
        their dtype.

    References
    ----------
    NoRA (arXiv 2408.10280) trains an inner low-rank product, LoRA-XS (arXiv 2405.17604) a full
    k x k core; `lowrank_opt.nora` and `lowrank_opt.lora_xs` build them.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> weight = torch.randn(8, 6)
    >>> nested = NestedSVD(weight, NBLoRA((4, 4), rank=2, radius=0.1))
    >>> nested.shape, nested.rank
    ((8, 6), 2)
    """

    wide: ClassVar[tuple[str, ...]] = ("outer_left", "outer_right")

    def __init__(
        self,
        outer: Tensor | LowRankOperator | tuple[Tensor, Tensor],
        inner: Parameterization,
    ) -> None:
        left, right = _frames(outer, inner.shape)
        super().__init__(inner, (left.shape[0], right.shape[0]))
        like = next(inner.parameters())
        # Frames rounded to half precision would not be orthonormal to more than 1e-3.
        dtype = torch.promote_types(like.dtype, torch.float32)
        left, right = (nearest_frame(x).to(like.device, dtype) for x in (left, right))
        self.register_buffer("outer_left", left)
        self.register_buffer("outer_right", right)
        self.outer_left: Tensor
        self.outer_right: Tensor

    @property
    def outer(self) -> tuple[Tensor, Tensor]:
        """The frames U and V."""
        return self.outer_left, self.outer_right

    @property
    def sides(self) -> tuple[Side, Side]:
        return Frame(self.outer_left), Frame(self.outer_right)

    @property
    def image(self) -> NestedSet:
        return NestedSet(self.inner.feasible_set, self.outer_left, self.outer_right)

    def converted(self, buffer: Tensor) -> Tensor:
        """Return a frame, orthonormal again."""
        return nearest_frame(buffer)


def _frames(
    outer: Tensor | LowRankOperator | tuple[Tensor, Tensor], inner_shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    k, ell = inner_shape
    if isinstance(outer, tuple):
        left, right = outer
        for frame in outer:
            _check_orthonormal(frame)
    elif isinstance(outer, Tensor):
        if not bool(torch.isfinite(outer).all()):
            raise TargetError("the outer weight must be finite; got NaN or infinity: remove them")
        left, _, right = leading_svd(outer, max(k, ell))
    else:
        left, _, right = outer.to(dtype=torch.float64).thin_svd()
    if not isinstance(outer, tuple):
        m, n = outer.shape
        if k > m or ell > n:
            raise ShapeError(f"the inner shape must fit into {(m, n)}; got {inner_shape}")
        left = orthonormal_like(left[:, :k], k)
        right = orthonormal_like(right[:, :ell], ell)
    if (left.shape[1], right.shape[1]) != (k, ell):
        raise ShapeError(
            f"the inner shape must be the numbers of columns of the frames, "
            f"{(left.shape[1], right.shape[1])}; got {inner_shape}"
        )
    return left, right


def _check_orthonormal(frame: Tensor) -> None:
    Q = frame.detach().double()
    eye = torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)
    deviation = float(torch.linalg.matrix_norm(Q.mT @ Q - eye))
    if not deviation <= relative_tolerance(frame.dtype, frame.shape[1]):
        raise TargetError(
            f"outer frames must have orthonormal columns; got a deviation of {deviation:.1e}: "
            "pass the weight itself and its SVD is taken"
        )
