"""The six rules of a federated server for one matrix: what goes into the base, what goes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.checks import check_rank
from lowrank_opt.combination import stacked
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import product_svd
from lowrank_opt.merging.clients.clients import working
from lowrank_opt.merging.clients.factors import ClientFactors
from lowrank_opt.merging.federated.fair import FairObjective, corrected_mean
from lowrank_opt.operator import LowRankOperator

FederatedMethod: TypeAlias = Literal["fedit", "ffa", "flora", "flexlora", "fedex", "fair"]


@dataclass(frozen=True)
class Settings:
    """What only some of the rules read.

    Attributes
    ----------
    rank : int or None
        Of FlexLoRA's broadcast, or of FedEx's residual.
    regularization : float
        LoRA-FAIR's lambda.
    objective : {"frobenius", "cosine", "cosine_squared"}
        LoRA-FAIR's.
    """

    rank: int | None
    regularization: float
    objective: FairObjective


class Sent(NamedTuple):
    """Factors to start from, and an update of the base weight; None for neither."""

    broadcast: LowRankOperator | None
    base_update: LowRankOperator | None


def apply_rule(
    method: FederatedMethod, ops: Sequence[LowRankOperator], weights: Tensor, settings: Settings
) -> Sent:
    """Return what one rule makes of clients with positive weights, in float64."""
    match method:
        case "flora":
            return Sent(None, stacked(ops, weights, working(ops[0]).dtype))
        case "flexlora":
            return Sent(_best_of_rank(ops, weights, settings.rank), None)
        case "ffa":
            return Sent(_with_frozen_right(ClientFactors.of(ops, weights)), None)
        case "fedit":
            return Sent(ClientFactors.of(ops, weights).mean(), None)
        case "fedex":
            clients = ClientFactors.of(ops, weights)
            return Sent(clients.mean(), _truncated(clients.residual(), settings.rank))
        case "fair":
            clients = ClientFactors.of(ops, weights)
            return Sent(
                corrected_mean(
                    clients,
                    regularization=settings.regularization,
                    objective=settings.objective,
                ),
                None,
            )


def _with_frozen_right(clients: ClientFactors) -> LowRankOperator:
    if not clients.common_right:
        raise OptionError(
            "'ffa' needs clients that share a frozen right factor, bit for bit; got different "
            "ones: freeze it during training, or use another method"
        )
    return clients.mean()


def _best_of_rank(
    ops: Sequence[LowRankOperator], weights: Tensor, rank: int | None
) -> LowRankOperator:
    """Return the best approximation of the average, in balanced factors of the clients' scale."""
    limit = min(ops[0].shape)
    k = min(limit, max(op.rank for op in ops)) if rank is None else rank
    U, sigma, V = product_svd(*stacked(ops, weights, working(ops[0]).dtype))
    k = min(k, len(sigma))
    scale = _common_scale(ops)
    return _balanced(U[:, :k], sigma[:k], V[:, :k], scale)


def _balanced(U: Tensor, sigma: Tensor, V: Tensor, scale: float) -> LowRankOperator:
    # Where sigma is rounding, only the left factor is zero: with both, no gradient would flow.
    floor = max(len(U), len(V)) * torch.finfo(sigma.dtype).eps * sigma[:1]
    kept = sigma > floor
    peak = sigma[:1].where(sigma[:1] > 0, scale)
    root, other = ((x / scale).sqrt() for x in (sigma, peak))
    left, right = U * root.where(kept, 0.0), V * root.where(kept, other)
    return LowRankOperator(left, torch.full_like(sigma, scale), right)


def _common_scale(ops: Sequence[LowRankOperator]) -> float:
    """Return the scale that all columns of all clients share, or 1."""
    scales = torch.cat([working(op).scale for op in ops])
    one = bool((scales == scales[0]).all()) and bool(scales[0] > 0)
    return float(scales[0]) if one else 1.0


def _truncated(op: LowRankOperator | None, rank: int | None) -> LowRankOperator | None:
    if op is None or rank is None or rank >= op.rank:
        return op
    return op.truncate(rank)


def check_settings_rank(method: str, rank: int | None, shape: tuple[int, int]) -> None:
    """Raise an error for a rank outside its range, or where the method has none to choose."""
    if rank is None:
        return
    if method not in ("flexlora", "fedex"):
        raise OptionError(
            f"rank is that of 'flexlora' broadcasts and 'fedex' residuals; got rank={rank} for "
            f"{method!r}"
        )
    check_rank(rank, shape)
