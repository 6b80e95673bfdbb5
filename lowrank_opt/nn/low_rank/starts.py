"""Where a layer of low rank starts: away from zero, so that a stack of them learns."""

from __future__ import annotations

import math

import torch

from lowrank_opt.errors import NoRightInverseError, NotInSetError, TargetError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.sets import relative_tolerance


@torch.no_grad()
def start_at_random_(
    weight: Parameterization, variance: float, generator: torch.Generator | None = None
) -> Parameterization:
    r"""Move a parameterization that is at zero to a random member of its set.

    Where every layer of a stack is at zero, so are all gradients. The start is the member nearest
    to :math:`s\, A B^T` with normal A and B of `rank` columns, where s gives its entries the
    variance that torch gives those of a dense layer. Maps without a right inverse, or whose image
    is a part of their set, get normal numbers in the parameters that are zero; in all of them if
    none is, as where an equal matrix is taken off. One that is elsewhere is left alone.

    Parameters
    ----------
    weight : Parameterization
    variance : float
        Of the entries.
    generator : torch.Generator, optional
        torch's own by default.
    """
    if any(p.is_meta for p in weight.parameters()) or not _is_zero(weight.factors()):
        return weight
    (m, n), r = weight.shape, weight.rank
    A, B = (torch.randn(size, r, dtype=torch.float64, generator=generator) for size in (m, n))
    scale = torch.full((r,), math.sqrt(variance / r), dtype=torch.float64)
    target = LowRankOperator(A, scale, B)
    device = next((p.device for p in weight.parameters()), torch.device("cpu"))
    try:
        return weight.assign(target.to(device=device), project=True)
    except (NoRightInverseError, NotImplementedError, TargetError, NotInSetError):
        own = [p for p in weight.parameters() if p.requires_grad]
        for p in [p for p in own if not bool(p.any())] or own:
            noise = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            p.copy_(noise / math.sqrt(max(1, p.shape[-1] if p.ndim else 1)))
        return weight


def _is_zero(op: LowRankOperator) -> bool:
    """Whether the matrix is zero, to the rounding of its terms, which may cancel."""
    left, scale, right = (x.double() for x in op.detach())
    terms = left.norm(dim=-2) * scale.abs() * right.norm(dim=-2)
    norm = float(op.detach().to(dtype=torch.float64).schatten_norm(2))
    return norm <= relative_tolerance(op.dtype, op.rank) * float(terms.sum())
