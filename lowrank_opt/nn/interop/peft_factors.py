"""One update as the factors and the scaling of LoRA, with its bound kept by the stored numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_opt.errors import NotInSetError, TargetError
from lowrank_opt.linalg import lp_norm, orthonormal_columns
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Factored, Parameterization
from lowrank_opt.parameterizations.certificate import certify, export
from lowrank_opt.sets import FeasibleSet, RankAtMost, relative_tolerance

# What rounding, and shrinking back inside, may cost: multiples of the package's tolerance.
_ROUNDINGS = 4


def peft_factors(
    member: Parameterization, dtype: torch.dtype | None, name: str
) -> tuple[LowRankOperator, float]:
    r"""Return factors for ``scaling * B A``, and the scaling; the triple's scale is the scaling.

    Factors with one scale for all terms go out as they are, if that needs no rounding and the
    bound of the declared set is proved for their exact product. All others are balanced,
    :math:`U \Sigma^{1/2}` and :math:`V \Sigma^{1/2}`, rounded to `dtype`, with scaling 1, and
    shrunk until the bound is proved. Terms that are zero have B = 0 and an orthonormal A, so that
    training can go on.

    Raises
    ------
    TargetError
        If the update is not finite, or its rounding to `dtype` is another matrix (underflow).
    """
    op = member.factors().detach()
    if not all(bool(torch.isfinite(x).all()) for x in op):
        raise TargetError(f"an update must be finite; {name} has NaN or infinity: train it again")
    dtype = op.dtype if dtype is None else dtype
    kept = _as_it_is(member, op) if dtype == op.dtype else None
    if kept is not None:
        return kept
    factors = _balanced(op, _declared(member, op), dtype)
    _check_rounding(factors, op, name)
    return factors, 1.0


def has_bound_proof(member: Parameterization) -> bool:
    """Whether membership in the declared set can be proved for exported factors."""
    return member.feasible_set.as_spectral(member.factors().detach()) is not None


def _declared(member: Parameterization, op: LowRankOperator) -> FeasibleSet:
    if has_bound_proof(member):
        return member.feasible_set
    return RankAtMost(min(member.feasible_set.rank, op.rank, *op.shape))


def _as_it_is(
    member: Parameterization, op: LowRankOperator
) -> tuple[LowRankOperator, float] | None:
    first = float(op.scale[0])
    uniform = first > 0 and bool((op.scale == first).all())
    trainable = bool(op.left.any()) or bool(op.right.any())
    short = op.rank <= min(member.feasible_set.rank, *op.shape)
    if not (uniform and trainable and short and certify(op, member.feasible_set).exact):
        return None
    return op, member.scaling if isinstance(member, Factored) else first


def _balanced(op: LowRankOperator, declared: FeasibleSet, dtype: torch.dtype) -> LowRankOperator:
    """Return factors of scale one whose exact product is in the set."""
    left, scale, right = export(op, declared, torch.float64)
    size = float(scale[0])
    count = max(1, int(left.any(dim=0).sum()) if size > 0 else 0)
    columns = min(declared.rank, left.shape[1])
    # A power of two in the right factor costs no rounding.
    root = 2.0 ** round(math.log2(size) / 2) if size > 0 else 1.0
    right = _completed((root * right)[:, :count], columns).to(dtype)
    one = torch.ones(columns, dtype=torch.promote_types(dtype, torch.float32), device=op.device)
    rest = left.new_zeros(left.shape[0], columns - count)
    left = torch.cat((left[:, :count], rest), dim=1)
    for shrink in (0.0, *(2.0**-k for k in range(50, 2, -1))):
        rounded = LowRankOperator((left * (size / root * (1 - shrink))).to(dtype), one, right)
        if certify(rounded, declared).exact:
            return rounded
    raise NotInSetError(
        f"exported factors must keep the bound of {declared}; none do in {dtype}: export in a "
        "wider dtype",
        excess=certify(op, declared).excess,
    )


def _completed(right: Tensor, columns: int) -> Tensor:
    """Add orthonormal columns, whose terms are zero, up to a number of columns."""
    peaks = right.abs().amax(dim=0)
    frame = (right / torch.where(peaks > 0, peaks, 1.0))[:, peaks > 0]
    whole = orthonormal_columns(frame, columns)
    return torch.cat((right[:, peaks > 0], whole[:, frame.shape[1] :]), dim=1)


def _check_rounding(factors: LowRankOperator, op: LowRankOperator, name: str) -> None:
    wide = op.to(dtype=torch.float64)
    size, dtype = float(wide.schatten_norm(2)), factors.dtype
    error = float((factors.to(dtype=torch.float64) - wide).schatten_norm(2))
    # Terms that cancel leave the rounding of float64 behind, whatever their sum is.
    terms = torch.stack([lp_norm(wide.left.mT, 2), wide.scale.abs(), lp_norm(wide.right.mT, 2)])
    noise = relative_tolerance(torch.float64, op.rank) * float(terms.prod(dim=0).sum())
    if not error <= _ROUNDINGS * relative_tolerance(dtype, op.rank) * size + noise:
        raise TargetError(
            f"factors must not over- or underflow in {dtype}; {name} of norm {size:.2e} would be "
            f"off by {error:.2e}: export in a wider dtype"
        )
