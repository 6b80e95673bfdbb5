"""The contract of a parameterization: free parameters in, a factor triple out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_opt.checks import check_held, check_rank, check_shape
from lowrank_opt.errors import (
    NoRightInverseError,
    NotInSetError,
    ShapeError,
    TargetError,
)
from lowrank_opt.linalg import orthonormal_columns
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.certificate import Certificate, certify, export
from lowrank_opt.parameterizations.config import Configured
from lowrank_opt.sets import FeasibleSet, RankAtMost


class Parameterization(Configured, ABC):
    r"""A map from unconstrained parameters to ``left diag(scale) right^T``.

    The map never leaves `feasible_set`, whatever the parameters; if `complete`, it reaches every
    member of that set. A subclass writes `factors`; `right_inverse` and `zero_` are optional. It
    keeps what its constructor takes under the names of the arguments: then it is shown, compared,
    saved and made again with no more written.

    Parameters
    ----------
    shape : tuple of int
        ``(m, n)``, rows by columns.
    rank : int
        Upper bound on the rank, in 1..min(m, n).

    Raises
    ------
    ShapeError, RankError
        If `shape` is not two positive integers, or `rank` does not fit.

    Examples
    --------
    >>> class Product(Parameterization):
    ...     def __init__(self, shape, rank):
    ...         super().__init__(shape, rank)
    ...         self.left = nn.Parameter(torch.zeros(shape[0], rank))
    ...         self.right = nn.Parameter(torch.randn(shape[1], rank))
    ...
    ...     def factors(self):
    ...         return LowRankOperator(self.left, torch.ones(self.rank), self.right)
    >>> Product((5, 3), 2).feasible_set
    RankAtMost(rank=2)
    """

    complete: bool = False
    # Whether an adapter begins where the map begins, instead of at zero by an `Offset`: of maps
    # that would be something else with their start subtracted.
    keeps_its_start: ClassVar[bool] = False
    # The parameter with a line for each row of W, if turning its lines turns W: W(Q B) = Q W(B) for
    # every Q with orthonormal columns. Its lines may then be spread over processes.
    alike_rows: ClassVar[str] = ""
    # The one with a line for each column, likewise: W(Q A) = W(A) Q^T.
    alike_cols: ClassVar[str] = ""

    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.shape: tuple[int, int] = check_shape(shape)
        self.rank: int = check_rank(rank, self.shape)

    @abstractmethod
    def factors(self) -> LowRankOperator:
        """Return the factor triple at the present parameters, differentiable in them."""

    def forward(self) -> LowRankOperator:
        """Return `factors`, so that hooks and ``functional_call`` work."""
        return self.factors()

    @property
    def feasible_set(self) -> FeasibleSet:
        """The set that `factors` cannot leave; here, the matrices of rank at most `rank`."""
        return RankAtMost(self.rank)

    def right_inverse(self, target: LowRankOperator | Tensor) -> dict[str, Tensor]:
        """Return parameter values that `factors` maps to `target`; changes nothing.

        Raises
        ------
        NoRightInverseError
            If the parameterization offers none.
        """
        raise NoRightInverseError(
            f"{type(self).__name__} has no right inverse; got a target to invert: "
            "override right_inverse(target), or optimise the parameters towards the target"
        )

    def assign(self, target: LowRankOperator | Tensor, project: bool = False) -> Self:
        """Set the parameters so that the map equals `target`; all of them or none.

        Parameters
        ----------
        target : LowRankOperator or Tensor, shape (m, n)
        project : bool
            Take the nearest member of the feasible set instead of refusing a target outside.

        Raises
        ------
        NotInSetError
            If `target` is outside the set and `project` is false.
        TargetError
            If `target` is not finite, of another shape, or over- or underflows the parameters.
        """
        op = self.operator_of(target)
        values = self.right_inverse(self.feasible_set.project(op) if project else op)
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        wrong = [k for k, v in values.items() if k not in own or own[k].shape != v.shape]
        if wrong:
            raise ShapeError(f"right_inverse must return tensors of this module; got {wrong}")
        lost = [k for k, v in values.items() if self._is_lost(v.detach(), own[k].dtype)]
        if lost:
            raise TargetError(
                f"the target must be held by {type(self).__name__} in {own[lost[0]].dtype}; its "
                f"{lost} would over- or underflow: use a wider dtype, or scale the target"
            )
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return self

    @torch.no_grad()
    def residual(self, target: LowRankOperator | Tensor) -> float:
        r"""Return :math:`\|W - \text{target}\|_F`, what ``assign(target, project=True)`` left.

        Computed in float64 from the factors; W is not formed.
        """
        op = self.operator_of(target).to(dtype=torch.float64)
        difference = self.factors().detach().to(dtype=torch.float64) - op
        return float(difference.schatten_norm(2))

    def zero_(self, *, generator: torch.Generator | None = None) -> Self:
        """Set the parameters to a start with W = 0 exactly and a gradient that does not vanish.

        Raises
        ------
        NotImplementedError
            If the parameterization has no such start.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no exact zero start; wrap it in Offset(...) to get one"
        )

    def certify(self, *, exact: bool = False) -> Certificate:
        """Return what the stored factors satisfy, with rounding errors bounded from above.

        Parameters
        ----------
        exact : bool
            Prove it in rational arithmetic, with no margin: ``certify(exact=True).save(path)``
            writes what anyone can check.

        Raises
        ------
        CertificateError
            If `exact` and the set is not one of singular values, see `prove_membership`.
        """
        return certify(self.factors().detach(), self.feasible_set, exact=exact)

    def export(self, dtype: torch.dtype) -> LowRankOperator:
        """Return factors rounded to `dtype` whose product, in exact arithmetic, is in the set."""
        return export(self.factors().detach(), self.feasible_set, dtype)

    def check_held(self, dtype: torch.dtype | None = None) -> None:
        """Raise RadiusError unless the size of the set can be stored and trained in a dtype.

        Constructors of bounded maps end with it, and moving to another dtype begins with it.

        Parameters
        ----------
        dtype : torch.dtype, optional
            That of the parameters by default.
        """
        size = self.feasible_set.size
        if size is not None:
            held = next(self.parameters()).dtype if dtype is None else dtype
            check_held(size, held, self.rank, "radius")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        own = next(self.parameters(), None)
        if own is not None:
            after = fn(own.detach().new_empty(0)).dtype
            if after != own.dtype:
                self.check_held(after)
        return super()._apply(fn, recurse)

    def _is_lost(self, value: Tensor, dtype: torch.dtype) -> bool:
        """Whether a dtype cannot hold a value: infinite, or nothing left of it in a cone."""
        peak = value.abs().amax() if value.numel() else value.new_zeros(())
        stored, cone = float(peak.to(dtype)), self.feasible_set.size is None
        vanished = cone and float(peak) > 0 and stored < torch.finfo(dtype).tiny
        return not math.isfinite(stored) or vanished

    def operator_of(self, target: LowRankOperator | Tensor) -> LowRankOperator:
        """Return a target as an operator cut off from autograd, whether it is a member or not.

        Raises
        ------
        TargetError
            If it has another shape, or is not finite.
        """
        if tuple(target.shape) != self.shape:
            raise TargetError(f"the target must have shape {self.shape}; got {tuple(target.shape)}")
        parts = (target,) if isinstance(target, Tensor) else tuple(target)
        if not all(bool(torch.isfinite(x).all()) for x in parts):
            raise TargetError("the target must be finite; got NaN or infinite entries: remove them")
        op = LowRankOperator.from_dense(target) if isinstance(target, Tensor) else target
        return op.detach()

    def svd_of(
        self, target: LowRankOperator | Tensor, *, within: FeasibleSet | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, sigma, V of a member of the set: `rank` orthonormal columns, float64.

        What right inverses start from: a target of lower rank gets columns of value zero.

        Parameters
        ----------
        target : LowRankOperator or Tensor, shape (m, n)
        within : FeasibleSet, optional
            Instead of `feasible_set`.

        Returns
        -------
        U : Tensor, shape (m, rank)
        sigma : Tensor, shape (rank,)
            Decreasing.
        V : Tensor, shape (n, rank)

        Raises
        ------
        NotInSetError
            If the target is no member, to the tolerance of its dtype.
        TargetError
            If it has another shape, or is not finite.

        Examples
        --------
        >>> from lowrank_opt import Factored
        >>> Factored((3, 3), rank=2).svd_of(torch.diag(torch.tensor([4.0, 0, 0])))[1]
        tensor([4., 0.], dtype=torch.float64)
        """
        op = self.operator_of(target)
        check_member(op, self.feasible_set if within is None else within)
        U, sigma, V = op.to(dtype=torch.float64).thin_svd()
        k = min(self.rank, len(sigma))
        values = nn.functional.pad(sigma[:k], (0, self.rank - k))
        left = orthonormal_like(U[:, :k], self.rank)
        return left, values, orthonormal_like(V[:, :k], self.rank)


def orthonormal_like(frame: Tensor, count: int) -> Tensor:
    """Complete orthonormal columns to `count` of them, keeping the given ones and their signs."""
    completed = orthonormal_columns(frame, count)
    return torch.cat((frame, completed[:, frame.shape[1] :]), dim=1)


def check_member(op: LowRankOperator, feasible_set: FeasibleSet) -> None:
    """Raise NotInSetError unless `op` is in the set to the package's tolerance."""
    if not feasible_set.contains(op):
        excess = feasible_set.excess(op)
        raise NotInSetError(
            f"the target must be in {feasible_set}; it exceeds it by {excess:.2e}: "
            "pass project=True to use the nearest member",
            excess=excess,
        )


@torch.no_grad()
def lora_start_(left: Tensor, right: Tensor, generator: torch.Generator | None = None) -> None:
    """Set left = 0 and right to a random orthonormal frame: a product 0 whose gradient is not."""
    left.zero_()
    right.copy_(random_frame(*right.shape, like=right, generator=generator))


def random_frame(
    rows: int, cols: int, *, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return random orthonormal columns, rounded to the dtype and device of `like`."""
    device = generator.device if generator is not None else torch.device("cpu")
    normal = torch.randn(rows, cols, dtype=torch.float64, device=device, generator=generator)
    return torch.linalg.qr(normal).Q.to(like)
