"""Put adapters into a model and take them out; all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapted import AdaptedModule, check_not_merged
from lowrank_opt.nn.errors import AdapterStateError
from lowrank_opt.nn.places import Place, Site, Targets, candidates, matches, places, select
from lowrank_opt.nn.radius import Make, Options, Radius
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Offset, Parameterization

Plan = list[tuple[Site, list[Parameterization]]]


def adapt(
    model: nn.Module,
    make: Make,
    *,
    targets: Targets,
    exclude: str | Sequence[str] = (),
    name: str = "default",
    radius: Radius | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    radius_pattern: Mapping[str, Radius] | None = None,
    modules_to_train: Sequence[str] = (),
) -> nn.Module:
    r"""Add a low-rank update to chosen weights of a model, in place.

    Every adapted weight computes with :math:`W_0 + \Delta W`. The base weights are frozen and
    never written to, and the start is :math:`\Delta W = 0` exactly: a parameterization that starts
    elsewhere is wrapped in `Offset`. Weights that are tied stay tied: every place that uses an
    adapted weight gets the same update, from one parameterization. After any error the model is
    what it was.

    Parameters
    ----------
    model : nn.Module
    make : function of a shape
        Returns a new parameterization for a weight of that shape: ``weight.flatten(1)`` for the
        layers that torch registers, one for each matrix of a bare parameter of more axes.
        Converted to the device of the weight, and to float32 or better.
    targets : str, sequence of str, or function of (name, module or parameter)
        Regular expressions for names or for the end of names after a dot; ``"all-linear"``; or a
        predicate. Names are those of layers, and of parameters for layers that need dense weights.
    exclude : str or sequence of str
        Regular expressions for what is left alone.
    name : str
        Of the adapter; it becomes the active one. A second name adds a second adapter.
    radius : float or RelativeRadius, optional
        Passed to `make` as ``radius=``.
    rank_pattern, radius_pattern : mapping, optional
        Regular expressions to values passed to `make` as ``rank=`` or ``radius=``; the first
        that matches counts.
    modules_to_train : sequence of str
        Regular expressions for modules that are trained as they are, a new head for example.
        Every other base parameter is frozen.

    Returns
    -------
    nn.Module
        The model; if the model itself is the adapted layer, its wrapper.

    Raises
    ------
    TargetError
        If a pattern matches nothing, a target is not adaptable, or a weight is not finite.
    RankError, RadiusError
        From `make`, if a rank or radius does not fit.
    AdapterStateError
        If the name is taken, or the model is merged.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = adapt(model, lambda shape: NBLoRA(shape, rank=2, radius=0.5), targets="all-linear")
    >>> type(model[0]).__name__
    'AdaptedModule'
    """
    everywhere = places(model)
    check_new_name(name, everywhere)
    options = Options(radius, rank_pattern or {}, radius_pattern or {})
    options.check(make, candidates(everywhere))
    groups = _tied_groups(select(targets, everywhere, exclude), everywhere, exclude)
    trained = _modules(modules_to_train, everywhere, [s for group in groups for s in group])
    plan: Plan = []
    for group in groups:
        _check_weight(group[0])
        members = [_started(p, group[0].parameter) for p in options.build(make, group[0])]
        plan += [(site, members) for site in group]
    _check_distinct([members for _, members in plan])
    return install(model, everywhere, plan, name, trained)


def install(
    model: nn.Module, everywhere: list[Place], plan: Plan, name: str, trained: list[nn.Module]
) -> nn.Module:
    """Put planned parameterizations into the model; cannot fail."""
    first = all(place.wrapper is None for place in everywhere)
    frozen = [p for place in everywhere for p in place.module.parameters(recurse=False)]
    for parameter in frozen if first else [site.parameter for site, _ in plan]:
        parameter.requires_grad_(False)
    parts: dict[int, tuple[Place, dict[str, list[Parameterization]]]] = {}
    for site, members in plan:
        parts.setdefault(id(site.place), (site.place, {}))[1][site.weight] = members
    for place, weights in parts.values():
        if place.wrapper is None:
            place.wrapper = AdaptedModule(place.module)
            for holder, key in place.holders:
                setattr(holder, key, place.wrapper)
        place.wrapper.add(name, weights)
    for wrapper in (place.wrapper for place in everywhere if place.wrapper is not None):
        wrapper.active = (name,)
    for parameter in (p for module in trained for p in module.parameters()):
        parameter.requires_grad_(True)
    wrapper = everywhere[0].wrapper
    return model if wrapper is None else wrapper


def unload(model: nn.Module) -> nn.Module:
    """Remove every adapter and return the base model, as it was before `adapt`.

    Its parameters stay frozen, and modules that were trained stay trained.

    Raises
    ------
    AdapterStateError
        If the model is merged.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> model = adapt(nn.Linear(4, 2), lambda shape: Factored(shape, 1), targets=".*")
    >>> type(unload(model)).__name__
    'Linear'
    """
    everywhere = places(model)
    check_not_merged(wrappers(model), "unload")
    return detach_wrappers(model, everywhere)


def detach_wrappers(model: nn.Module, everywhere: list[Place]) -> nn.Module:
    """Put the base modules back in the places of their wrappers."""
    for place in everywhere:
        for holder, key in place.holders if place.wrapper is not None else ():
            setattr(holder, key, place.module)
    return everywhere[0].module


def wrappers(model: nn.Module) -> list[AdaptedModule]:
    """Return the adapted modules, or raise AdapterStateError if there are none."""
    found = [place.wrapper for place in places(model) if place.wrapper is not None]
    if not found:
        raise AdapterStateError(
            f"the model must be adapted; got a {type(model).__name__} without adapters: "
            "call adapt(model, make, targets=...) first"
        )
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of the adapters of a model, in the order they came."""
    return list(dict.fromkeys(name for w in wrappers(model) for name in w.names))


def check_known(model: nn.Module, names: Sequence[str]) -> None:
    """Raise AdapterStateError unless the model has an adapter of each name."""
    known = adapter_names(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterStateError(f"adapters must exist; got {unknown}: the model has {known}")


def check_new_name(name: str, everywhere: list[Place]) -> None:
    """Raise AdapterStateError unless an adapter of that name can be added."""
    present = [place.wrapper for place in everywhere if place.wrapper is not None]
    check_not_merged(present, "adding an adapter")
    if not name or "." in name or name.endswith("_"):
        raise AdapterStateError(f"an adapter's name must be a plain word; got {name!r}: rename it")
    if any(wrapper.adapter(name) is not None for wrapper in present):
        raise AdapterStateError(
            f"an adapter's name must be new; the model has {name!r}: pass name=... or unload(model)"
        )


def _tied_groups(
    sites: list[Site], everywhere: list[Place], exclude: str | Sequence[str]
) -> list[list[Site]]:
    """Return the sites grouped by parameter, completed by all others that share it."""
    owners: dict[int, list[Site]] = {}
    for place in everywhere:
        for key, parameter in place.module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(Site(place, key))
    groups = {id(site.parameter): owners[id(site.parameter)] for site in sites}
    chosen = {site.name for site in sites}
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    for tied in (site for group in groups.values() for site in group if site.name not in chosen):
        if any(matches(x, tied.name) or matches(x, tied.place.name) for x in patterns):
            raise TargetError(
                f"tied weights are adapted together; {tied.name} is excluded, but shares its "
                "weight with a target: exclude both or none, or untie them first"
            )
    return list(groups.values())


def _modules(
    patterns: Sequence[str], everywhere: list[Place], sites: list[Site]
) -> list[nn.Module]:
    several = (patterns,) if isinstance(patterns, str) else patterns
    for pattern in several:
        if not any(p.name and matches(pattern, p.name) for p in everywhere):
            raise TargetError(
                f"modules_to_train must match something; got {pattern!r}: the model has "
                f"{', '.join(p.name for p in everywhere if p.name)[:500]}"
            )
    found = [p for p in everywhere if p.name and any(matches(x, p.name) for x in several)]
    trained = {id(q) for place in found for q in place.module.parameters()}
    both = [site.name for site in sites if id(site.parameter) in trained]
    if both:
        raise TargetError(
            f"a weight is adapted or trained, not both; got {both} in modules_to_train: "
            "exclude them or train less"
        )
    return [place.module for place in found]


def _check_weight(site: Site) -> None:
    weight = site.parameter
    if not weight.is_meta and not bool(torch.isfinite(weight).all()):
        raise TargetError(
            f"a weight to adapt must be finite; {site.name} has NaN or infinite entries: "
            "repair the checkpoint"
        )


def _check_distinct(plans: list[list[Parameterization]]) -> None:
    groups = {id(members): members for members in plans}.values()
    every = [id(member) for members in groups for member in members]
    if len(set(every)) < len(every):
        raise TargetError(
            "make(shape) must return a new parameterization at each call; got one twice: "
            "construct it inside the function"
        )


def _started(parameterization: Parameterization, weight: nn.Parameter) -> Parameterization:
    """Return it at an exact zero start, in the precision and on the device of the weight."""
    started = parameterization
    if not any(x.is_meta for x in parameterization.parameters()):
        op = parameterization.factors().detach()
        started = parameterization if _vanishes(op) else Offset(parameterization)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    started.requires_grad_(True)
    return started.to(device=weight.device, dtype=dtype)


def _vanishes(op: LowRankOperator) -> bool:
    """Whether each rank-one term is zero, so that every product with x is an exact zero."""
    left, scale, right = op
    terms = left.any(dim=-2) & right.any(dim=-2) & (scale != 0)
    return not bool(terms.any())
