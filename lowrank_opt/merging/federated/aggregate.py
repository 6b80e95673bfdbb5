"""Federated aggregation of low-rank updates, with what it misses and what it guarantees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args, overload

import torch
from torch import Tensor

from lowrank_opt.combination import stacked
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.merging.clients.clients import (
    Client,
    DeclaredUpdate,
    ModelClient,
    check_members,
    each_matrix,
    of_matrix,
    read_updates,
    read_weights,
    working,
)
from lowrank_opt.merging.clients.factors import aligned
from lowrank_opt.merging.federated.fair import FairObjective
from lowrank_opt.merging.federated.rules import (
    FederatedMethod,
    Sent,
    Settings,
    apply_rule,
    check_settings_rank,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet, RankAtMost

Declared = FeasibleSet | Sequence[FeasibleSet]

# Products of larger factors, and of their squares in QR, may overflow float64.
_LARGEST = 1e300


@dataclass(frozen=True, eq=False)
class Aggregate:
    r"""What the server makes of the clients' updates of one matrix.

    Attributes
    ----------
    method : str
    broadcast : LowRankOperator or None
        Factors from which every client starts the next round; None for a fresh start with an
        update of zero (``flora``).
    base_update : LowRankOperator or None
        What server and clients add to the base weight; None for nothing.
    ideal : LowRankOperator
        The exact average :math:`D = \sum_k p_k W_k`: all clients' factors side by side.
    bias : float
        :math:`\|D - \text{update}\|_F / \|D\|_F`, of the factors as they are sent, their rounding
        included.
    feasible_set : FeasibleSet
        Contains `update`: a norm bound where one follows, else a bound on the rank.
    floats_up, floats_down : tuple of int
        Numbers that each client sends and receives in this round.
    """

    method: FederatedMethod
    broadcast: LowRankOperator | None
    base_update: LowRankOperator | None
    ideal: LowRankOperator
    bias: float
    feasible_set: FeasibleSet
    floats_up: tuple[int, ...]
    floats_down: tuple[int, ...]

    @property
    def update(self) -> LowRankOperator:
        """How the weight of the next round's start differs from the present base weight."""
        parts = [op for op in (self.base_update, self.broadcast) if op is not None]
        assert parts, "every rule sends something"
        return sum(parts[1:], start=parts[0])


@overload
def aggregate(
    clients: Sequence[Client],
    method: FederatedMethod = ...,
    *,
    weights: Sequence[float] | Tensor | None = ...,
    reference: LowRankOperator | None = ...,
    rank: int | None = ...,
    regularization: float = ...,
    objective: FairObjective = ...,
    feasible_set: Declared | None = ...,
) -> Aggregate: ...


@overload
def aggregate(
    clients: Sequence[ModelClient],
    method: FederatedMethod = ...,
    *,
    weights: Sequence[float] | Tensor | None = ...,
    reference: Mapping[str, LowRankOperator] | None = ...,
    rank: int | None = ...,
    regularization: float = ...,
    objective: FairObjective = ...,
    feasible_set: Mapping[str, Declared] | None = ...,
) -> dict[str, Aggregate]: ...


def aggregate(
    clients: Sequence[Client] | Sequence[ModelClient],
    method: FederatedMethod = "fedex",
    *,
    weights: Sequence[float] | Tensor | None = None,
    reference: LowRankOperator | Mapping[str, LowRankOperator] | None = None,
    rank: int | None = None,
    regularization: float = 0.01,
    objective: FairObjective = "frobenius",
    feasible_set: Declared | Mapping[str, Declared] | None = None,
) -> Aggregate | dict[str, Aggregate]:
    r"""Aggregate the clients' updates :math:`W_k = B_k A_k` of one round.

    With :math:`D = \sum_k p_k W_k` and mean factors :math:`\bar B, \bar A`:

    =============  ==============================================  ======================
    method         sent                                            equals D
    =============  ==============================================  ======================
    ``fedit``      :math:`\bar B, \bar A`                          no
    ``ffa``        :math:`\bar B`, the right factor is frozen      yes
    ``flora``      all factors, added to the base; fresh start     yes
    ``flexlora``   the best approximation of D of a given rank     no; best of its rank
    ``fedex``      :math:`\bar B, \bar A`; the base gets the rest  yes
    ``fair``       :math:`\bar B + dB, \bar A`                     at most on rows of A
    =============  ==============================================  ======================

    Everything is computed from thin products, in float64; D is never formed.

    Parameters
    ----------
    clients : sequence
        Each a `LowRankOperator`, a parameterization, or a pair (left, right) of shapes (m, r) and
        (n, r); or, for whole models, mappings of names to these, or adapted modules.
    method : {"fedit", "ffa", "flora", "flexlora", "fedex", "fair"}
        ``flora`` and ``flexlora`` take clients of different ranks and do not depend on how a
        client's product is split into factors; averages of factors do.
    weights : sequence of float or Tensor, shape (K,), optional
        Nonnegative, of sum one: shares of the data. Equal by default. A client of weight zero is
        as if it were not there.
    reference : LowRankOperator, or mapping of names, optional
        The factors that were broadcast before. Each client's factors are turned towards them by
        an orthogonal matrix before they are averaged, which changes no product.
    rank : int, optional
        For ``flexlora`` that of the broadcast (by default the clients' largest), for ``fedex``
        that to which the residual is truncated (by default not).
    regularization : float
        LoRA-FAIR's lambda, nonnegative.
    objective : {"frobenius", "cosine", "cosine_squared"}
        LoRA-FAIR minimises :math:`\|D - (\bar B + dB) \bar A\|_F^2 + \lambda \|dB\|_F^2` in closed
        form, or :math:`1 - \cos(D, (\bar B + dB) \bar A) + \lambda \|dB\|_F` by L-BFGS, which fixes
        the direction of the product and not its size. That printed penalty leaves dB = 0 wherever
        the slope there is below lambda, often at the published 0.01; ``cosine_squared`` has the
        square of it, as the re-implementations do.
    feasible_set : FeasibleSet, one for each client, or mapping of names, optional
        What the clients' updates are declared to be in; by default what parameterizations declare.

    Returns
    -------
    Aggregate, or dict of names to Aggregate for whole models
        In the dtype of the clients. Its `feasible_set` holds to the tolerance of that dtype:
        ``flora`` and ``fedex`` stay in the averaged ball, with the ranks added; ``ffa`` in that
        of the clients' rank; ``flexlora`` too, truncation lowers every singular value; ``fedit``
        and ``fair`` keep a bound on the rank only, since a product of averages is no average.

    Raises
    ------
    OptionError
        If an option is unknown or outside its domain, weights do not sum to one, or the right
        factors of ``ffa`` differ.
    ShapeError, RankError
        If shapes differ, or ranks do where factors are averaged.
    TargetError
        If a client is not finite, the result is not, or models differ in their matrices.
    NotInSetError
        If a client is outside the set that is declared for it.

    References
    ----------
    FedIT: Zhang et al. (arXiv 2305.05644); FFA-LoRA: Sun et al. (arXiv 2403.12313), section 4;
    FLoRA: Wang et al. (arXiv 2409.05976), section 3; FlexLoRA: Bai et al. (arXiv 2402.11505);
    FedEx-LoRA: Singhal et al. (arXiv 2410.09432), section 3; LoRA-FAIR: Bian et al.
    (arXiv 2411.14961), whose printed objective minimises a similarity: read here as one minus the
    cosine.

    Examples
    --------
    >>> clients = [(torch.eye(3)[:, [k]], torch.eye(4)[:, [k]]) for k in range(2)]
    >>> aggregate(clients, "flora").update.to_dense().diagonal()
    tensor([0.5000, 0.5000, 0.0000])
    >>> round(aggregate(clients, "fedit").bias, 4), aggregate(clients, "fedex").bias < 1e-7
    (0.7071, True)
    """
    everyone = list[Client | ModelClient](clients)
    settings = Settings(rank, regularization, objective)
    _check_options(everyone, method, settings)
    if reference is not None:
        _check_reference(method)
    p = read_weights(weights, len(everyone))
    return each_matrix(
        everyone,
        lambda name, sent: _aggregate_matrix(
            sent, method, p, of_matrix(reference, name), settings, of_matrix(feasible_set, name)
        ),
    )


def _aggregate_matrix(
    clients: Sequence[Client],
    method: FederatedMethod,
    weights: Tensor,
    reference: LowRankOperator | None,
    settings: Settings,
    declared: Declared | None,
) -> Aggregate:
    everyone = read_updates(clients, declared)
    used = [u for u, p in zip(everyone, weights.tolist(), strict=True) if p > 0]
    p = weights[weights > 0]
    check_members(used)
    check_settings_rank(method, settings.rank, used[0].op.shape)
    ops = [_moderate(update.op) for update in used]
    dtype = _common_dtype(ops)
    ideal = stacked(ops, p, dtype)
    if reference is not None:
        ops = [aligned(op, reference.detach().to(device=op.device)) for op in ops]
    sent = apply_rule(method, ops, p, settings)
    broadcast, base_update = (_rounded(op, dtype) for op in sent)
    up, down = _floats(method, everyone, Sent(broadcast, base_update))
    result = Aggregate(method, broadcast, base_update, ideal, 0.0, RankAtMost(1), up, down)
    return replace(
        result,
        bias=_relative_difference(ideal, result.update),
        feasible_set=_follows(used, p.tolist(), result),
    )


def _moderate(op: LowRankOperator) -> LowRankOperator:
    left, scale, right = (float(x.abs().max()) for x in working(op))
    if not max(left * scale, right * scale, left * scale * right) <= _LARGEST:
        raise TargetError(
            f"updates must not exceed {_LARGEST:g}, so that sums of their squares exist; got "
            f"factors of size {left:.1e} and {right:.1e}: leave the client out"
        )
    return op


def _common_dtype(ops: Sequence[LowRankOperator]) -> torch.dtype:
    dtype = ops[0].dtype
    for op in ops[1:]:
        dtype = torch.promote_types(dtype, op.dtype)
    return dtype


def _rounded(op: LowRankOperator | None, dtype: torch.dtype) -> LowRankOperator | None:
    """Round the factors and not the scale: weights and scales are few numbers."""
    if op is None:
        return None
    rounded = LowRankOperator(op.left.to(dtype), op.scale, op.right.to(dtype))
    if not all(bool(torch.isfinite(x).all()) for x in rounded):
        raise TargetError(
            f"the aggregate must be finite; it overflows {dtype}: send clients in a wider dtype"
        )
    return rounded


def _relative_difference(ideal: LowRankOperator, update: LowRankOperator) -> float:
    difference = working(ideal) - working(update)
    parts = [x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny) for x in difference]
    missed = LowRankOperator(*parts)
    k = ideal.rank
    whole = LowRankOperator(parts[0][:, :k], parts[1][:k], parts[2][:, :k])
    error, size = (float(op.schatten_norm(2)) for op in (missed, whole))
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def _follows(
    used: Sequence[DeclaredUpdate], weights: Sequence[float], result: Aggregate
) -> FeasibleSet:
    """Return a set that contains the update, given those of the clients."""
    shape = result.ideal.shape
    average: FeasibleSet = RankAtMost(min(result.ideal.rank, *shape))
    sets = [update.declared for update in used if update.declared is not None]
    if len(sets) == len(used):
        average = sets[0].averaged(sets, weights, rank=average.rank)
    rank = min(result.update.rank, *shape)
    if result.method == "flexlora":
        return average.truncated(rank)
    untruncated = result.method != "fedex" or rank == min(result.ideal.rank, *shape)
    exact = result.method in ("flora", "ffa", "fedex") or len(used) == 1
    return average.with_rank(rank) if exact and untruncated else RankAtMost(rank)


def _floats(
    method: FederatedMethod, clients: Sequence[DeclaredUpdate], sent: Sent
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    m, n = clients[0].op.shape
    # The right factor of ffa is known to everyone.
    length = m if method == "ffa" else m + n
    broadcast, extra = (0 if op is None else op.rank for op in sent)
    up = tuple(update.op.rank * length for update in clients)
    down = tuple(min(c.op.rank, broadcast) * length + extra * (m + n) for c in clients)
    return up, down


def _check_options(clients: Sequence[object], method: str, settings: Settings) -> None:
    if not clients:
        raise OptionError("aggregate needs at least one client; got none")
    if method not in get_args(FederatedMethod):
        raise OptionError(f"method must be one of {get_args(FederatedMethod)}; got {method!r}")
    if settings.objective not in get_args(FairObjective):
        raise OptionError(
            f"objective must be one of {get_args(FairObjective)}; got {settings.objective!r}"
        )
    if not settings.regularization >= 0:
        raise OptionError(
            f"regularization must be nonnegative; got regularization={settings.regularization!r}"
        )


def _check_reference(method: str) -> None:
    if method not in ("fedit", "fedex", "fair"):
        raise OptionError(
            f"a reference is for methods that average both factors; got method={method!r}, which "
            "needs none: leave it out"
        )
