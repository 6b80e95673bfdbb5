"""Weighted combinations of adapters, as a new adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

import torch
from torch import nn

from lowrank_opt.combination import TRUNCATED, CombineMethod, CombineSettings, combined
from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.present import (
    check_known,
    check_not_merged,
    record_of,
)
from lowrank_opt.nn.adapters.record import as_weights
from lowrank_opt.nn.adapters.slots import (
    every_slot,
)
from lowrank_opt.nn.adapters.weights import (
    AdaptedWeight,
    adapted_weights,
)
from lowrank_opt.nn.basis.frozen import Frozen
from lowrank_opt.nn.surgery.install import Plan, Updates, check_new_name, install
from lowrank_opt.nn.surgery.options import Make
from lowrank_opt.nn.surgery.own import Own, trainable_copy
from lowrank_opt.nn.surgery.switching import check_lead
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization

AdapterCombineMethod = CombineMethod | Literal["linear", "ties", "dare"]

# Short names of three of the rules.
_SHORT: dict[str, CombineMethod] = {
    "linear": "sum",
    "ties": "ties_dense",
    "dare": "dare_dense",
}


def combine(
    model: nn.Module,
    weights: Mapping[str, float],
    *,
    name: str,
    method: AdapterCombineMethod = "linear",
    rank: int | None = None,
    density: float = 0.5,
    make: Make | None = None,
    generator: torch.Generator | None = None,
    lead: str | None = None,
) -> None:
    r"""Add the adapter :math:`\sum_a w_a \Delta W_a` and make it the active one.

    ``linear``: the sum, exactly, of as many columns as the adapters have together.
    ``svd``: the sum, truncated to `rank`.
    ``ties``: of each update only the largest entries are kept, per entry the sign with the larger
    weighted sum wins, and the values of that sign are averaged with their weights.
    ``dare``: entries are dropped at random and the others divided by `density`, then summed.

    TIES and DARE work on entries: they form one dense update at a time, and return its truncation
    to `rank`. The other rules of `lowrank_opt.merging.combine` may be named too.

    Parameters
    ----------
    model : nn.Module
        Adapted, and not merged.
    weights : mapping from adapter names to float
    name : str
        Of the new adapter.
    method : {"linear", "svd", "ties", "dare"}, or a method of `lowrank_opt.merging.combine`
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
    lead : str, optional
        The adapter whose own modules and buffers the new one gets copies of, where several have
        other ones.

    Raises
    ------
    OptionError
        If there is nothing to combine, the method is unknown, or a number is outside its domain.
    AdapterStateError
        If an adapter does not exist, the name is taken, the model is merged, or the adapters'
        own modules or buffers differ and there is no `lead`.
    TargetError
        If an adapter has magnitudes: the sum is no low-rank update, and `switch` with weights
        gives it.

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
    record_of(model)
    check_not_merged(model, "combine")
    check_new_name(model, name)
    check_known(model, list(weights))
    _check_options(weights, method, density)
    check_lead(model, list(weights), lead)
    factors = dict(as_weights(weights))
    rule = cast("CombineMethod", _SHORT.get(method, method))
    settings = CombineSettings(rank, density, generator)
    terms: dict[int, list[list[tuple[LowRankOperator, float]]]] = {}
    found = adapted_weights(model, set(factors))
    for adapted in _each_once(found):
        of_weight = terms.setdefault(id(adapted.slot.parameter), [[] for _ in adapted.updates])
        for term, update in zip(of_weight, adapted.totals(), strict=True):
            term.append((update().detach(), factors[adapted.adapter]))
    made = {
        key: [_parameterized(_combined(t, rule, settings), make) for t in matrices]
        for key, matrices in terms.items()
    }
    slots = {adapted.name: adapted.slot for adapted in found}
    updates: Updates = [(slot, made[id(slot.parameter)]) for slot in slots.values()]
    install(model, Plan(name, updates, _own_of(model, list(weights), lead)))


def _each_once(found: Sequence[AdaptedWeight]) -> list[AdaptedWeight]:
    """Return the updates without the repetitions for weights that are tied."""
    return list({(x.adapter, id(x.updates[0])): x for x in found}.values())


def _own_of(model: nn.Module, names: Sequence[str], lead: str | None) -> list[Own]:
    """Return copies of what the adapters have of their own."""
    copies: dict[int, Own] = {}
    for slot in every_slot(model):
        store = slot.store
        chosen = tuple((name, 1.0) for name in names)
        for key in () if store is None else sorted(store.changed):
            own = store.own(key, chosen, lead)  # pyright: ignore[reportOptionalMemberAccess]
            if own is None:
                continue
            if id(own) in copies:
                copies[id(own)] = Own(
                    [*copies[id(own)].places, (slot, key)], copies[id(own)].tensor
                )
                continue
            parameter = isinstance(own, nn.Parameter)
            copied = trainable_copy(own) if parameter else own.detach().clone()
            copies[id(own)] = Own([(slot, key)], copied)
    return list(copies.values())


def _combined(
    weighted: Sequence[tuple[LowRankOperator, float]],
    method: CombineMethod,
    settings: CombineSettings,
) -> LowRankOperator:
    """Return one update of several, of the rank that is asked for, in their dtype."""
    ops = [op for op, _ in weighted]
    limit = min(ops[0].shape)
    weights = torch.tensor([factor for _, factor in weighted], dtype=torch.float64)
    if method == "average":
        weights = weights / weights.sum()
    exact, dtype = method == "sum", ops[0].dtype
    terms = ops if exact else [op.to(dtype=torch.float64) for op in ops]
    total = combined(method, terms, weights, settings)
    keep = limit if settings.rank is None else min(settings.rank, limit)
    if settings.rank is None and method in TRUNCATED:
        keep = min(limit, max(op.rank for op in ops))
    return (total.truncate(keep) if total.rank > keep else total).to(dtype=dtype)


def _parameterized(op: LowRankOperator, make: Make | None) -> Parameterization:
    if make is None:
        return Frozen(op)
    made = make(op.shape).to(device=op.device, dtype=op.dtype)
    return made.assign(op, project=True)


def _check_options(weights: Mapping[str, float], method: str, density: float) -> None:
    known = (*_SHORT, *get_args(CombineMethod))
    if method not in known:
        raise OptionError(f"method must be one of {known}; got {method!r}")
    if not weights:
        raise OptionError("combine needs at least one adapter; got no weights")
    if not 0 < density <= 1:
        raise OptionError(f"density must be in (0, 1]; got {density!r}")
