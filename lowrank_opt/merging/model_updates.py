"""The matrices of an adapted model: its base weights, its updates, and new updates put into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lowrank_opt.errors import ShapeError, TargetError
from lowrank_opt.nn.adapted import check_not_merged
from lowrank_opt.nn.frozen import Frozen
from lowrank_opt.nn.places import Place, Site, candidates, places
from lowrank_opt.nn.surgery import Plan, check_new_name, install, wrappers
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization


def base_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the base weights that adapters update, each a matrix, by their names.

    Parameters
    ----------
    model : nn.Module
        Adapted, merged or not.

    Returns
    -------
    dict
        From the name of a weight before adaptation; with ``/0``, ``/1``, ... added where one
        weight is a stack of matrices. A weight that is tied occurs once.

    Raises
    ------
    AdapterStateError
        If the model is not adapted.
    """
    wrappers(model)
    found: dict[str, Tensor] = {}
    for place, weight, ops in _adapted(model):
        assert place.wrapper is not None, "adapted places have wrappers"
        parameter = place.wrapper.originals().get(weight, place.module.get_parameter(weight))
        stack = parameter.detach().reshape(len(ops), *ops[0].shape)
        found |= dict(zip(_names(place, weight, len(ops)), stack, strict=True))
    return found


def model_updates(model: nn.Module) -> dict[str, LowRankOperator]:
    """Return the sums of the active adapters' updates, by the names of `base_matrices`.

    Of a merged model those of the adapters that it is merged with.

    Raises
    ------
    AdapterStateError
        If the model is not adapted.
    TargetError
        If no adapter is active.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> model_updates(model)
    {'weight': LowRankOperator(2 x 4, rank <= 1, torch.float32, cpu)}
    """
    wrappers(model)
    found: dict[str, LowRankOperator] = {}
    for place, weight, ops in _adapted(model):
        found |= dict(zip(_names(place, weight, len(ops)), ops, strict=True))
    if not found:
        raise TargetError("a model needs an active adapter; got none: call switch(model, name)")
    return found


def add_updates(
    model: nn.Module, updates: Mapping[str, LowRankOperator], *, name: str
) -> nn.Module:
    """Put fixed updates into a model, as a new adapter that becomes the active one.

    Parameters
    ----------
    model : nn.Module
        Adapted or not; not merged. Changed in place.
    updates : mapping of str to LowRankOperator
        By the names that `model_updates` gives; more than min(m, n) columns are merged, and
        weights that are tied to a named one are updated with it.
    name : str
        Of the new adapter.

    Returns
    -------
    nn.Module
        The model, as `lowrank_opt.nn.adapt` returns it.

    Raises
    ------
    TargetError, ShapeError
        If a name is no weight of the model, or a shape is not that of the weight. Nothing has
        been changed.
    AdapterStateError
        If the adapter exists, or the model is merged.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(4, 1))
    >>> model = add_updates(nn.Linear(4, 2, bias=False), {"weight": op}, name="ones")
    >>> (model(torch.ones(4)) - model.base(torch.ones(4))).round().tolist()
    [4.0, 4.0]
    """
    everywhere = places(model)
    adapted = [place.wrapper for place in everywhere if place.wrapper is not None]
    check_not_merged(adapted, "add_updates")
    if adapted:
        check_new_name(name, everywhere)
    sites = {site.name: site for c in candidates(everywhere) for site in c.sites}
    named = {
        name: _names(site.place, site.weight, len(site.shapes)) for name, site in sites.items()
    }
    made: dict[int, list[Parameterization]] = {}
    for name_of_site, names in named.items():
        site = sites[name_of_site]
        if set(names) & set(updates):
            pairs = zip(names, site.shapes, strict=True)
            made.setdefault(id(site.parameter), [_fixed(updates, n, shape) for n, shape in pairs])
    unknown = sorted(set(updates) - {n for names in named.values() for n in names})
    if unknown or not updates:
        raise TargetError(
            f"updates must have names of weights; got {unknown or 'none'}: the model has "
            f"{sorted(sites)[:20]}"
        )
    # Weights that are tied are updated in all their places.
    plan: Plan = [(s, made[id(s.parameter)]) for s in sites.values() if id(s.parameter) in made]
    return install(model, everywhere, plan, name, [])


def _fixed(updates: Mapping[str, LowRankOperator], name: str, shape: tuple[int, int]) -> Frozen:
    if name not in updates:
        raise TargetError(f"a stack of matrices needs an update for each; {name} is missing")
    op = updates[name]
    if op.shape != shape:
        raise ShapeError(
            f"an update must have the shape of its weight; {name} is {shape}, got {op}"
        )
    return Frozen(op.truncate(min(shape)) if op.rank > min(shape) else op)


@torch.no_grad()
def _adapted(model: nn.Module) -> Iterator[tuple[Place, str, list[LowRankOperator]]]:
    """Yield each updated weight once, with the updates of its matrices."""
    seen: set[int] = set()
    for place in places(model):
        if place.wrapper is None:
            continue
        names = place.wrapper.merged or place.wrapper.active
        kept = place.wrapper.originals()
        for weight, ops in place.wrapper.updates(names).items():
            parameter = kept.get(weight, place.module.get_parameter(weight))
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield place, weight, [op.detach() for op in ops]


def _names(place: Place, weight: str, count: int) -> list[str]:
    name = Site(place, weight).name
    return [f"{name}/{i}" for i in range(count)] if count > 1 else [name]
