"""From one round of federated training to the next: put the server's results into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.merging.clients.clients import active_weights
from lowrank_opt.merging.federated.aggregate import Aggregate
from lowrank_opt.merging.federated.private import PrivateMerge
from lowrank_opt.nn.adapters.present import (
    check_not_merged,
    record_of,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    settle,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Factored, Parameterization

Result = Aggregate | PrivateMerge


@torch.no_grad()
def start_round(
    model: nn.Module,
    results: Mapping[str, Result],
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Let the active adapter of a model start from what the server sent; in place.

    Every client and the server call it with the same results. A `Factored` update of the
    broadcast's rank takes the broadcast factors themselves, any other parameterization the
    nearest member of its set. What `Aggregate.base_update` holds becomes a settled part of the
    adapter: base weights stay as they are, and saving the adapter saves it too.

    Parameters
    ----------
    model : nn.Module
        Adapted, with one active adapter, and not merged.
    results : mapping of str to Aggregate or PrivateMerge
        Of all matrices that the adapter updates, as returned for whole models.
    generator : torch.Generator, optional
        For fresh starts, where nothing is broadcast. The same one everywhere gives all clients
        the same factors.

    Raises
    ------
    TargetError, ShapeError
        If the names or shapes are not those of the model. Nothing has been changed.
    AdapterStateError
        If the model is merged.

    Examples
    --------
    >>> from lowrank_opt.merging import aggregate
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> start_round(model, aggregate([model, model], "fedit"))
    """
    record_of(model)
    check_not_merged(model, "start_round")
    for adapted, sent in _plan(model, results):
        updates = [r.base_update if isinstance(r, Aggregate) else None for r in sent]
        if any(op is not None for op in updates):
            settle(model, adapted, [_like(op, adapted) for op in updates])
        for member, result in zip(adapted.updates, sent, strict=True):
            _start(member, _broadcast(result), generator)


def _like(op: LowRankOperator | None, adapted: AdaptedWeight) -> LowRankOperator | None:
    return None if op is None else op.to(device=adapted.slot.parameter.device)


def _plan(
    model: nn.Module, results: Mapping[str, Result]
) -> list[tuple[AdaptedWeight, list[Result]]]:
    found = active_weights(model)
    missing = sorted({n for adapted in found for n in adapted.matrix_names} ^ set(results))
    if missing:
        raise TargetError(f"results must be of the model's matrices; these differ: {missing}")
    plan = [(adapted, [results[n] for n in adapted.matrix_names]) for adapted in found]
    for adapted, sent in plan:
        for member, result in zip(adapted.updates, sent, strict=True):
            if _shape(result) != member.shape:
                raise ShapeError(
                    f"results must have the shapes of the model; {adapted.name} is "
                    f"{member.shape}, got {_shape(result)}"
                )
    return plan


def _shape(result: Result) -> tuple[int, int]:
    return result.ideal.shape if isinstance(result, Aggregate) else result.operator.shape


def _broadcast(result: Result) -> LowRankOperator | None:
    return result.broadcast if isinstance(result, Aggregate) else result.operator


def _start(
    member: Parameterization, op: LowRankOperator | None, generator: torch.Generator | None
) -> None:
    if op is None:
        member.zero_(generator=generator)
        return
    if isinstance(member, Factored) and member.rank == op.rank:
        member.left.copy_(op.left * (op.scale / member.scaling))
        member.right.copy_(op.right)
        return
    like = next(member.parameters())
    member.assign(op.to(dtype=like.dtype, device=like.device), project=True)
