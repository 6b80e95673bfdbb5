"""From one round of federated training to the next: put the server's results into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.merging.aggregate import Aggregate
from lowrank_opt.merging.clients import adapter_sites, matrix_names
from lowrank_opt.merging.private import PrivateMerge
from lowrank_opt.nn.adapted import check_not_merged
from lowrank_opt.nn.places import Site
from lowrank_opt.nn.surgery import wrappers
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
    nearest member of its set. What `Aggregate.base_update` holds is added to the base weight, in
    its dtype, which is the one thing that changes a base weight here.

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
    check_not_merged(wrappers(model), "start_round")
    for site, members, sent in _plan(model, results):
        _add_to_base(site, sent)
        for member, result in zip(members, sent, strict=True):
            _start(member, _broadcast(result), generator)


def _plan(
    model: nn.Module, results: Mapping[str, Result]
) -> list[tuple[Site, list[Parameterization], list[Result]]]:
    named = [(site, members, matrix_names(site, members)) for site, members in adapter_sites(model)]
    missing = sorted({n for _, _, names in named for n in names} ^ set(results))
    if missing:
        raise TargetError(f"results must be of the model's matrices; these differ: {missing}")
    plan = [(site, members, [results[n] for n in names]) for site, members, names in named]
    for site, members, sent in plan:
        for member, result in zip(members, sent, strict=True):
            if _shape(result) != member.shape:
                raise ShapeError(
                    f"results must have the shapes of the model; {site.name} is {member.shape}, "
                    f"got {_shape(result)}"
                )
    return plan


def _shape(result: Result) -> tuple[int, int]:
    return result.ideal.shape if isinstance(result, Aggregate) else result.operator.shape


def _broadcast(result: Result) -> LowRankOperator | None:
    return result.broadcast if isinstance(result, Aggregate) else result.operator


def _add_to_base(site: Site, sent: list[Result]) -> None:
    """Add the base updates of a weight's matrices, which is dense, one matrix at a time."""
    weight = site.parameter
    stack = weight.detach().view(len(sent), *_shape(sent[0]))
    for matrix, result in zip(stack, sent, strict=True):
        op = result.base_update if isinstance(result, Aggregate) else None
        if op is not None:
            wide = torch.promote_types(op.dtype, weight.dtype)
            dense = op.to(dtype=wide, device=weight.device).to_dense()
            matrix.copy_((matrix + dense).to(weight.dtype))


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
