"""Weighted combinations of adapters, as a new adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from lowrank_opt.errors import RadiusError, TargetError
from lowrank_opt.linalg.entrywise import drop_and_rescale, elect_sign_and_average, keep_largest
from lowrank_opt.nn.adapted import AdaptedModule, check_not_merged
from lowrank_opt.nn.frozen import Frozen
from lowrank_opt.nn.places import Site, places
from lowrank_opt.nn.radius import Make
from lowrank_opt.nn.surgery import Plan, check_known, check_new_name, install, wrappers
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization

Method = Literal["linear", "svd", "ties", "dare"]


def combine(
    model: nn.Module,
    weights: Mapping[str, float],
    *,
    name: str,
    method: Method = "linear",
    rank: int | None = None,
    density: float = 0.5,
    make: Make | None = None,
    generator: torch.Generator | None = None,
) -> None:
    r"""Add the adapter :math:`\sum_a w_a \Delta W_a` and make it the active one.

    ``linear``: the sum, exactly, of as many columns as the adapters have together.
    ``svd``: the sum, truncated to `rank`.
    ``ties``: of each update only the largest entries are kept, per entry the sign with the larger
    weighted sum wins, and the values of that sign are averaged with their weights.
    ``dare``: entries are dropped at random and the others divided by `density`, then summed.

    TIES and DARE work on entries: they form one dense update at a time, and return its truncation
    to `rank`.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    weights : mapping from adapter names to float
    name : str
        Of the new adapter.
    method : {"linear", "svd", "ties", "dare"}
    rank : int, optional
        At most; by default the largest possible one, for all but ``linear`` the largest rank of
        the adapters that are combined.
    density : float
        In (0, 1], the share of entries that TIES and DARE keep.
    make : function of a shape, optional
        Returns the parameterization of the result, which is assigned the nearest member of its
        set; trainable. By default the result is fixed (`Frozen`).
    generator : torch.Generator, optional
        Of DARE's choice.

    Raises
    ------
    TargetError, RadiusError
        If there is nothing to combine, the method is unknown, or a number is outside its domain.
    AdapterStateError
        If an adapter does not exist, the name is taken, or the model is merged.

    References
    ----------
    Yadav et al., TIES-Merging (arXiv 2306.01708); Yu et al., DARE (arXiv 2311.03099).

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> from lowrank_opt.nn import adapt
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*", name="a")
    >>> model = adapt(model, lambda shape: Factored(shape, 1), targets=".*", name="b")
    >>> combine(model, {"a": 0.5, "b": 0.5}, name="mean")
    """
    everywhere = places(model)
    check_not_merged(wrappers(model), "combine")
    check_new_name(name, everywhere)
    check_known(model, list(weights))
    _check_options(weights, method, density)
    plan: Plan = []
    done: dict[int, list[Parameterization]] = {}
    for place in everywhere:
        updates = {} if place.wrapper is None else _updates(place.wrapper, weights)
        for weight, terms in updates.items():
            site = Site(place, weight)
            if id(site.parameter) not in done:
                ops = [_combined(t, method, rank, density, generator) for t in terms]
                done[id(site.parameter)] = [_parameterized(op, make) for op in ops]
            plan.append((site, done[id(site.parameter)]))
    install(model, everywhere, plan, name, [])


def _updates(
    wrapper: AdaptedModule, weights: Mapping[str, float]
) -> dict[str, list[list[LowRankOperator]]]:
    """Return, for each weight and each of its matrices, the weighted updates of the adapters."""
    found: dict[str, list[list[LowRankOperator]]] = {}
    for adapter, factor in weights.items():
        for weight, ops in wrapper.updates([adapter]).items():
            terms = found.setdefault(weight, [[] for _ in ops])
            for term, op in zip(terms, ops, strict=True):
                term.append(factor * op.detach())
    return found


def _combined(
    terms: Sequence[LowRankOperator],
    method: Method,
    rank: int | None,
    density: float,
    generator: torch.Generator | None,
) -> LowRankOperator:
    limit = min(terms[0].shape)
    largest = min(limit, max(op.rank for op in terms))
    if method in ("linear", "svd"):
        total = sum(terms[1:], start=terms[0])
        keep = (largest if method == "svd" else limit) if rank is None else min(rank, limit)
        return total.truncate(keep) if total.rank > keep else total
    keep = largest if rank is None else min(rank, limit)
    if method == "ties":
        trimmed = [keep_largest(op.to_dense(), density) for op in terms]
        return LowRankOperator.from_dense(elect_sign_and_average(trimmed), keep)
    thinned = (drop_and_rescale(op.to_dense(), density, generator) for op in terms)
    return LowRankOperator.from_dense(sum(thinned, start=terms[0].left.new_zeros(())), keep)


def _parameterized(op: LowRankOperator, make: Make | None) -> Parameterization:
    if make is None:
        return Frozen(op)
    made = make(op.shape).to(device=op.device, dtype=op.dtype)
    return made.assign(op, project=True)


def _check_options(weights: Mapping[str, float], method: str, density: float) -> None:
    if method not in get_args(Method):
        raise TargetError(f"method must be one of {get_args(Method)}; got {method!r}")
    if not weights:
        raise TargetError("combine needs at least one adapter; got no weights")
    if not 0 < density <= 1:
        raise RadiusError(f"density must be in (0, 1]; got {density!r}")
