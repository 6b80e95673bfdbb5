"""Several low-rank updates combined into one, with what it guarantees and what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, overload

import torch
from torch import Tensor

from lowrank_opt.checks import check_rank
from lowrank_opt.combination import (
    RANDOM,
    TRUNCATED,
    CombineMethod,
    CombineSettings,
    combined,
)
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import lp_norm
from lowrank_opt.merging.clients.clients import (
    Client,
    ModelClient,
    check_members,
    each_matrix,
    of_matrix,
    read_updates,
    working,
)
from lowrank_opt.merging.combined.combined_sets import combined_set
from lowrank_opt.merging.combined.interference import Interference, measure_interference
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet


@dataclass(frozen=True, eq=False)
class Combination:
    r"""Several updates of one matrix made into one.

    Attributes
    ----------
    method : str
    operator : LowRankOperator
        The combined update, in the dtype of the updates.
    feasible_set : FeasibleSet
        Contains `operator`: a norm bound where one follows, else a bound on the rank.
    weights : tuple of float
        As they were used.
    lost : float
        The share, in the Frobenius norm, of what truncation to the rank has cut off.
    interference : Interference
    """

    method: CombineMethod
    operator: LowRankOperator
    feasible_set: FeasibleSet
    weights: tuple[float, ...]
    lost: float
    interference: Interference


@overload
def combine(
    updates: Sequence[Client],
    weights: Sequence[float] | Tensor | None = ...,
    method: CombineMethod = ...,
    *,
    rank: int | None = ...,
    density: float = ...,
    generator: torch.Generator | None = ...,
    feasible_set: FeasibleSet | Sequence[FeasibleSet] | None = ...,
) -> Combination: ...


@overload
def combine(
    updates: Sequence[ModelClient],
    weights: Sequence[float] | Tensor | None = ...,
    method: CombineMethod = ...,
    *,
    rank: int | None = ...,
    density: float = ...,
    generator: torch.Generator | None = ...,
    feasible_set: Mapping[str, FeasibleSet | Sequence[FeasibleSet]] | None = ...,
) -> dict[str, Combination]: ...


def combine(
    updates: Sequence[Client] | Sequence[ModelClient],
    weights: Sequence[float] | Tensor | None = None,
    method: CombineMethod = "average",
    *,
    rank: int | None = None,
    density: float = 0.5,
    generator: torch.Generator | None = None,
    feasible_set: FeasibleSet
    | Sequence[FeasibleSet]
    | Mapping[str, FeasibleSet | Sequence[FeasibleSet]]
    | None = None,
) -> Combination | dict[str, Combination]:
    r"""Combine low-rank updates :math:`W_1, \dots, W_K` into one.

    ===================  =====================================================  ================
    method               result                                                 declared bound
    ===================  =====================================================  ================
    ``sum``              :math:`\sum_i w_i W_i`, exactly: columns side by side  radii add
    ``average``          the same with weights of sum one                       radii averaged
    ``svd``              the best approximation of the sum of a given rank      radii add
    ``knots``            KnOTS: TIES in coordinates common to all updates       Frobenius norm
    ``tsv``              TSV-M: singular vectors of all updates, decorrelated   p-th powers add
    ``drop_components``  singular components dropped at random, rescaled, sum   radii / density
    ``ties_dense``       TIES on the entries                                    Frobenius norm
    ``dare_dense``       DARE: entries dropped at random, rescaled, sum         Frobenius norm
    ``magnitude_dense``  the largest entries of each update, sum                Frobenius norm
    ===================  =====================================================  ================

    All but the last three compute with thin factors: the m x n matrix is never formed. Those
    three act on its entries, form it, and return its best approximation of rank `rank`.

    Parameters
    ----------
    updates : sequence
        Each a `LowRankOperator`, a parameterization, or a pair (left, right) of shapes (m, r) and
        (n, r); or, for whole models, mappings of names to these, or adapted modules. Ranks may
        differ.
    weights : sequence of float or Tensor, shape (K,), optional
        Finite; negative ones subtract. Ones by default. ``average`` divides them by their sum,
        and takes no negative ones.
    method : str
    rank : int, optional
        At most, in 1..min(m, n). By default that of the sum for thin methods, and the largest
        rank of the updates for ``svd`` and the entrywise ones.
    density : float
        In (0, 1]: the share of entries, or the probability of components, that are kept.
    generator : torch.Generator, optional
        Of the random choices.
    feasible_set : FeasibleSet, one for each update, or mapping of names, optional
        What the updates are declared to be in; by default what parameterizations declare.

    Returns
    -------
    Combination, or dict of names to Combination for whole models
        Computed in float64; the factors are returned in the dtype of the updates, with a scale in
        float64 (``sum`` and ``average`` keep the factors bit for bit). `add_updates` puts the
        operators into a model.

    Raises
    ------
    OptionError, RankError
        If an option is unknown or outside its domain.
    ShapeError, TargetError
        If updates do not fit together or are not finite.
    NotInSetError
        If an update is outside the set that is declared for it.

    Notes
    -----
    Averages of factors are not offered: :math:`\bar B \bar A` is no average of products, and
    changes with the split of each product into factors (`lowrank_opt.merging.aggregate` has it, as
    ``fedit``, with its error).

    KnOTS' coordinates are :math:`U^T W_i` for the left singular vectors U of
    :math:`[W_1, \dots, W_K]`. TSV-M takes the nearest orthonormal vectors to the left and right
    singular vectors of all updates; where those are linearly dependent, which leaves the
    published map undetermined, it is the partial isometry here, so that equal updates give that
    update. Where the updates have more than min(m, n), or `rank`, components together, each keeps
    an equal number of leading ones, as published. Small differences between nearly equal updates
    are enlarged to full strength.
    Dropping components is this package's analogue of DARE: unbiased, and thin.

    References
    ----------
    TIES: Yadav et al. (arXiv 2306.01708), algorithm 1; DARE: Yu et al. (arXiv 2311.03099); KnOTS:
    Stoica et al. (arXiv 2410.19735), section 4; TSV-M: Gargiulo et al. (arXiv 2412.00081),
    algorithm 1.

    Examples
    --------
    >>> a, b = (LowRankOperator.from_dense(torch.diag(x), 1) for x in torch.eye(2))
    >>> combine([a, b]).operator.to_dense().diagonal()
    tensor([0.5000, 0.5000])
    >>> combine([a, a], method="tsv").operator.to_dense().diagonal()
    tensor([1., 0.])
    """
    everything = list[Client | ModelClient](updates)
    settings = CombineSettings(rank, density, generator)
    _check_options(everything, method, settings)
    w = _read_weights(weights, len(everything), method)
    return each_matrix(
        everything,
        lambda name, sent: _combine_matrix(
            sent, w, method, settings, of_matrix(feasible_set, name)
        ),
    )


def _combine_matrix(
    updates: Sequence[Client],
    weights: Tensor,
    method: CombineMethod,
    settings: CombineSettings,
    declared: FeasibleSet | Sequence[FeasibleSet] | None,
) -> Combination:
    read = read_updates(updates, declared)
    check_members(read)
    ops, sets = [x.op for x in read], [x.declared for x in read]
    if settings.rank is not None:
        check_rank(settings.rank, ops[0].shape)
    dtype = _common_dtype(ops)
    exact = method in ("sum", "average")
    ops = [op.to(dtype=dtype) if exact and op.dtype != dtype else op for op in ops]
    whole = combined(method, ops if exact else [working(op) for op in ops], weights, settings)
    keep = _kept_rank(method, ops, settings.rank, whole.rank)
    result = whole if keep is None else whole.truncate(keep)
    operator = LowRankOperator(result.left.to(dtype), result.scale, result.right.to(dtype))
    used = weights.tolist()
    return Combination(
        method=method,
        operator=operator,
        feasible_set=combined_set(
            method,
            sets,
            used,
            rank=min(operator.rank, *operator.shape),
            density=settings.density,
            truncated=keep is not None,
        ),
        weights=tuple(used),
        lost=0.0 if keep is None else _lost(whole, keep),
        interference=measure_interference(
            [w * op for w, op in zip(used, ops, strict=True)], operator
        ),
    )


def _kept_rank(
    method: str, ops: Sequence[LowRankOperator], rank: int | None, columns: int
) -> int | None:
    """Return the rank to truncate to, or None if nothing is cut off."""
    limit = min(ops[0].shape)
    if rank is None and method in TRUNCATED:
        rank = min(limit, max(op.rank for op in ops))
    return rank if rank is not None and rank < columns else None


def _lost(whole: LowRankOperator, rank: int) -> float:
    values = working(whole).singular_values()
    total = float(lp_norm(values, 2))
    return float(lp_norm(values[rank:], 2)) / total if total > 0 else 0.0


def _common_dtype(ops: Sequence[LowRankOperator]) -> torch.dtype:
    dtype = ops[0].dtype
    for op in ops[1:]:
        dtype = torch.promote_types(dtype, op.dtype)
    return dtype


def _read_weights(weights: Sequence[float] | Tensor | None, count: int, method: str) -> Tensor:
    if weights is None:
        w = torch.ones(count, dtype=torch.float64)
    else:
        w = torch.as_tensor(weights).detach().cpu().double()
    if w.shape != (count,) or not bool(torch.isfinite(w).all()):
        raise OptionError(
            f"weights must be one finite number for each of {count} updates; got {w.tolist()}"
        )
    if method != "average":
        return w
    total = float(w.sum())
    if not (bool((w >= 0).all()) and 0 < total < math.inf):
        raise OptionError(
            f"weights of an average must be nonnegative with a positive sum; got {w.tolist()}: use "
            "'sum' to subtract"
        )
    return w / total


def _check_options(
    updates: Sequence[object], method: CombineMethod, settings: CombineSettings
) -> None:
    if not updates:
        raise OptionError("combine needs at least one update; got none")
    if method not in get_args(CombineMethod):
        raise OptionError(f"method must be one of {get_args(CombineMethod)}; got {method!r}")
    if not 0 < settings.density <= 1:
        raise OptionError(f"density must be in (0, 1]; got {settings.density!r}")
    if settings.generator is not None and method not in RANDOM:
        raise OptionError(f"a generator is for methods that drop at random; got one for {method!r}")
