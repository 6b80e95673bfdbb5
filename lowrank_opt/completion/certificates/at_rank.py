r"""The part of a gap that a point of the same rank could close.

A gap at a settled iterate has two causes: the iterate is not stationary, or its rank binds. Let T
be the tangent space of the matrices of W's rank, :math:`\{U X^T + Y V^T\}`. Whatever keeps the rank
moves within T to first order, and sees of the gradient G only

.. math:: P_T G = U U^T G + (I - U U^T) G V V^T.

With :math:`P_T G` in place of G, the bound of `certify_completion` says what the gap would be if
there were no other directions. It is zero at a stationary point of that rank; what is left of the
gap is the price of the rank, at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.certificates.dual_bound import DualBound
from lowrank_opt.completion.certificates.support import matrix_of
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.observations.parts import all_finite
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, LinearImage, ShiftedSet, SpectralSet
from lowrank_opt.sets.sides import as_array

if TYPE_CHECKING:
    from lowrank_opt.completion.certificates.support import Matrix

# Singular values below this share of the largest one are no directions but rounding.
_EMPTY = 1e-9
# And below this one, columns that some maps leave only slowly: more may come of them.
_SMALL = 1e-4


@dataclass(frozen=True)
class GapAtRank:
    """What of a gap is not due to the rank.

    Parameters
    ----------
    amount : float
        The gap that directions at the rank account for, in the unit of the objective.
    full : bool
        Whether the iterate has all the rank that it may have; empty columns, and small
        ones beside large ones, are a way out.
    """

    amount: float
    full: bool


def gap_at_rank(
    problem: ConvexProblem,
    operator: LowRankOperator,
    bias: AdditiveBias,
    *,
    rank: int | None = None,
) -> GapAtRank:
    r"""Return the gap that directions at the rank of the iterate account for.

    Parameters
    ----------
    problem : ConvexProblem
    operator : LowRankOperator, shape (m, n)
    bias : AdditiveBias
    rank : int, optional
        How much rank the iterate may have, with a penalty; by default as many columns as it has.

    Returns
    -------
    GapAtRank
        To rounding in float64; an estimate that decides whether to go on, not a proof. For an image
        of an inner set, T is taken there.

    References
    ----------
    M. Journee, F. Bach, P.-A. Absil, R. Sepulchre, Low-rank optimization on the cone of positive
    semidefinite matrices (2010), section 4, tell local minima from global ones by the same split.

    Examples
    --------
    >>> from lowrank_opt import Observations, SchattenBall
    >>> from lowrank_opt.completion.model.bias import no_bias
    >>> diagonal = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    >>> observations = Observations.from_dense(diagonal)
    >>> problem = ConvexProblem(observations, SchattenBall(p=1, radius=3.0, rank=1))
    >>> best_of_rank_one = LowRankOperator.from_dense(diagonal).truncate(1)
    >>> gap_at_rank(problem, best_of_rank_one, no_bias(observations))
    GapAtRank(amount=0.0, full=True)
    """
    observations = problem.observations.to(dtype=torch.float64, device="cpu")
    op = operator.detach().to(dtype=torch.float64, device="cpu")
    bias = bias.to(dtype=torch.float64, device="cpu")
    terms = DualBound(observations, op, bias, problem.bias_penalty)
    y = terms.gradient()
    if not all_finite(observations, y):
        return GapAtRank(math.inf, full=False)
    G = matrix_of(observations.with_values(y))
    linear, quadratic = terms.linear(y), terms.quadratic(y)
    objective, limit = terms.objective(), math.inf
    if isinstance(problem.constraint, FeasibleSet):
        support, full = _support(problem.constraint, op, G)
        linear -= support
    else:
        objective += problem.constraint * float(op.schatten_norm(1))
        top = float(_tangent_values(op, G)[0])
        limit = problem.constraint / top if top > 0 else math.inf
        full = _rank(op) >= (op.rank if rank is None else min(rank, *op.shape))
    t = min(max(linear, 0.0) / quadratic, limit) if quadratic > 0 else 0.0
    return GapAtRank(max(objective - t * (linear - 0.5 * t * quadratic), 0.0), full)


def _support(feasible_set: FeasibleSet, W: LowRankOperator, G: Matrix) -> tuple[float, bool]:
    """Return the support function at minus the tangent part of G, and whether the rank is full."""
    match feasible_set:
        case SpectralSet():
            values = _tangent_values(W, G)
            count = min(feasible_set.lmo_rank, *W.shape)
            values = torch.nn.functional.pad(values, (0, max(count - len(values), 0)))[:count]
            member = feasible_set.support_singular_values(values)
            return float(torch.dot(member, values)), _rank(W) >= min(feasible_set.rank, *W.shape)
        case LinearImage(inner=inner):
            A, B = (None if x.cols is None else as_array(x.matrix) for x in feasible_set.sides)
            core = G if B is None else G @ B
            core = core if A is None else (core.T @ A).T
            return _support(inner, feasible_set.core(W), core)
        case ShiftedSet(inner=inner):
            offset = feasible_set.offset.detach().to(dtype=torch.float64, device="cpu")
            shift = (offset.left.mT @ torch.from_numpy(G @ offset.right.numpy())).diagonal()
            support, full = _support(inner, W + offset, G)
            return support + float(shift @ offset.scale), full
        case _:
            raise AssertionError("a ConvexProblem has no other set")


def _tangent_values(W: LowRankOperator, G: Matrix) -> Tensor:
    """Return the singular values of the projection of G on the tangent space at W, 2 r of them."""
    U, sigma, V = W.thin_svd()
    live = sigma > _EMPTY * sigma.amax()
    U, V = U[:, live], V[:, live]
    GV, GtU = (torch.from_numpy(x) for x in (G @ V.numpy(), G.T @ U.numpy()))
    beside = GV - U @ (U.mT @ GV)
    left, right = torch.cat((U, beside), dim=-1), torch.cat((GtU, V), dim=-1)
    return LowRankOperator(left, left.new_ones(left.shape[-1]), right).singular_values()


def _rank(W: LowRankOperator) -> int:
    sizes = W.singular_values()
    return int((sizes > _SMALL * sizes.amax()).sum())
