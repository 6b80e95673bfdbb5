"""What stored factors satisfy: rigorous bounds on their singular values, and safe export."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import NotInSetError
from lowrank_opt.linalg import product_svd
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, SpectralSet, relative_tolerance


@dataclass(frozen=True)
class Certificate:
    """The verdict on one factor triple as stored, in exact arithmetic.

    Attributes
    ----------
    feasible_set : FeasibleSet
        The declared set.
    rank : int
        Columns of the triple: an upper bound on its rank in any arithmetic.
    singular_values : tuple of float
        Upper bounds on the singular values of the exact product of the stored factors.
    excess : float
        Upper bound on the excess over the set; at most 0 if membership is proved without any
        tolerance.
    tolerance : float
        What rounding to the dtype of the factors explains.
    """

    feasible_set: FeasibleSet
    rank: int
    singular_values: tuple[float, ...]
    excess: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the excess is within the tolerance."""
        return self.excess <= self.tolerance

    @property
    def exact(self) -> bool:
        """Whether membership holds in exact arithmetic, with no tolerance."""
        return self.excess <= 0.0


def singular_value_bounds(op: LowRankOperator) -> Tensor:
    r"""Return upper bounds on the singular values of the exact product, in float64.

    The computed values of two QR factorizations and one SVD, raised by
    :math:`8\, (m + n + r)^{1/2} r\, u` relative to the largest: a bound on the backward error of
    the three factorizations (Higham, *Accuracy and Stability*, ch. 19) with a wide margin.
    """
    m, n = op.shape
    sigma = product_svd(*op.to(dtype=torch.float64))[1]
    margin = 8 * math.sqrt(m + n + op.rank) * op.rank * torch.finfo(torch.float64).eps
    return sigma + margin * sigma.amax()


def certify(op: LowRankOperator, feasible_set: FeasibleSet) -> Certificate:
    """Return the certificate of `op` for `feasible_set`.

    For a spectral set the excess is an upper bound; for other sets it is the computed excess plus
    the same relative margin.
    """
    values = singular_value_bounds(op)
    unit = feasible_set.unit(op)
    if isinstance(feasible_set, SpectralSet):
        # The triple has at most `rank` columns, so no value lies beyond the rank of the set.
        beyond = float(values[feasible_set.rank]) if len(values) > feasible_set.rank else 0.0
        value_excess = float(feasible_set.singular_value_excess(values[: feasible_set.rank]))
        excess = max(beyond, value_excess) if beyond else value_excess
    else:
        excess = feasible_set.excess(op)
    return Certificate(
        feasible_set=feasible_set,
        rank=op.rank,
        singular_values=tuple(values.tolist()),
        excess=excess,
        tolerance=relative_tolerance(op.dtype, feasible_set.rank) * unit,
    )


def export(op: LowRankOperator, feasible_set: FeasibleSet, dtype: torch.dtype) -> LowRankOperator:
    r"""Round the factors to `dtype` and shrink the scale until the set holds exactly.

    Parameters
    ----------
    op : LowRankOperator
    feasible_set : FeasibleSet
        A spectral set: star-shaped about zero, so that shrinking leads inside.
    dtype : torch.dtype
        Of the returned factors; the scale stays in float32 or better and is never folded into
        them, since that would round once more and void the bound.

    Returns
    -------
    LowRankOperator
        Its product in exact arithmetic is a member of `feasible_set`.

    Raises
    ------
    NotInSetError
        If no shrinking by less than 10 % leads inside (the operator was no member).
    """
    if not isinstance(feasible_set, SpectralSet):
        raise NotInSetError(
            f"export proves membership for spectral sets only; got {feasible_set}: "
            "export the inner parameterization instead",
            excess=math.nan,
        )
    U, sigma, V = op.to(dtype=torch.float64).thin_svd()
    root = sigma.sqrt() / sigma.amax().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    left, right = (U * root).to(dtype), (V * root).to(dtype)
    scale_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    factor = float(sigma.amax())
    for shrink in (2.0**-k for k in range(40, 3, -1)):
        scale = torch.full_like(sigma, factor * (1 - shrink)).to(scale_dtype)
        rounded = LowRankOperator(left, scale, right)
        values = singular_value_bounds(rounded)
        if float(feasible_set.singular_value_excess(values)) <= 0:
            return rounded
    raise NotInSetError(
        f"the operator exceeds {feasible_set} by {feasible_set.excess(op):.2e}; project it first",
        excess=feasible_set.excess(op),
    )
