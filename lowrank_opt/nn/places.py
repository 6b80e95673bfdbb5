"""Where things are in a model: modules and weights under their names before adaptation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lowrank_opt.errors import TargetError
from lowrank_opt.nn.adapted import AdaptedModule
from lowrank_opt.nn.sites import kind_of, matrix_shapes, registered_kind, type_name
from lowrank_opt.parameterizations import Parameterization

# What computes a weight is not itself a layer.
_OPAQUE = (Parameterization, ParametrizationList)

Targets = str | Sequence[str] | Callable[[str, nn.Module | nn.Parameter], bool]


@dataclass
class Place:
    """A module of the model as its author named it, adapted or not."""

    name: str
    module: nn.Module
    wrapper: AdaptedModule | None = None
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """One weight of one place."""

    place: Place
    weight: str

    @property
    def name(self) -> str:
        """The dotted name of the parameter, without the wrappers of adapters."""
        return join(self.place.name, self.weight)

    @property
    def parameter(self) -> nn.Parameter:
        """The base weight."""
        return self.place.module.get_parameter(self.weight)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes of its matrices."""
        return matrix_shapes(self.parameter, kind_of(self.place.module))


@dataclass(frozen=True)
class Candidate:
    """Something that a target may name: a layer with its weights, or one bare parameter."""

    name: str
    target: nn.Module | nn.Parameter
    sites: tuple[Site, ...]
    linear: bool = False


def places(model: nn.Module) -> list[Place]:
    """Return every module once, in order; wrappers are transparent, parameterizations opaque."""
    found: dict[int, Place] = {}

    def visit(child: nn.Module, name: str, holder: tuple[nn.Module, str] | None) -> None:
        wrapper = child if isinstance(child, AdaptedModule) else None
        module = child.base if isinstance(child, AdaptedModule) else child
        known = id(module) in found
        place = found.setdefault(id(module), Place(name, module, wrapper))
        if holder is not None:
            place.holders.append(holder)
        if known or isinstance(module, _OPAQUE):
            return
        for key, part in module._modules.items():  # pyright: ignore[reportPrivateUsage]
            if part is not None:
                visit(part, join(name, key), (module, key))

    visit(model, "", None)
    return [place for place in found.values() if not isinstance(place.module, _OPAQUE)]


def candidates(everywhere: Iterable[Place]) -> list[Candidate]:
    """Return all that can be adapted, in order."""
    return [c for place in everywhere for c in _candidates_of(place)]


def _candidates_of(place: Place) -> list[Candidate]:
    registered = registered_kind(place.module)
    kind = kind_of(place.module)
    sites = [Site(place, w) for w in kind.weights(place.module) if _usable(place.module, w)]
    found = [Candidate(place.name, place.module, tuple(sites), kind.linear)] if registered else []
    if not sites or (kind.refuse is not None and kind.refuse(place.module) is not None):
        return []
    if kind.update is None:
        found += [Candidate(s.name, s.parameter, (s,)) for s in sites]
    return found


def _usable(module: nn.Module, weight: str) -> bool:
    p = dict(module.named_parameters(recurse=False)).get(weight)
    return p is not None and not is_lazy(p) and p.ndim > 1 and p.is_floating_point()


def select(targets: Targets, everywhere: list[Place], exclude: str | Sequence[str]) -> list[Site]:
    """Return the sites that the targets name, less the excluded ones, each once.

    Raises
    ------
    TargetError
        If a pattern matches nothing, or names something that cannot be adapted.
    """
    options = candidates(everywhere)
    chosen = _matching(targets, options, everywhere)
    dropped = {c.name for c in options if matches_any(exclude, c.name)}
    _check_excluded(exclude, options)
    kept = [c for c in chosen if c.name not in dropped]
    if not kept:
        raise TargetError(
            f"targets must leave something to adapt; got targets={targets!r} with "
            f"exclude={exclude!r}: {describe(options)}"
        )
    with_companions = [*kept, *_companions(kept, options, dropped)]
    return list({s.name: s for c in with_companions for s in c.sites}.values())


def _matching(
    targets: Targets, options: list[Candidate], everywhere: list[Place]
) -> list[Candidate]:
    if callable(targets):
        return [c for c in options if targets(c.name, c.target)]
    if targets == "all-linear":
        return [c for c in options if c.linear]
    for pattern in (targets,) if isinstance(targets, str) else targets:
        if not any(matches(pattern, c.name) for c in options):
            raise TargetError(_no_match(pattern, options, everywhere))
    return [c for c in options if matches_any(targets, c.name)]


def _no_match(pattern: str, options: list[Candidate], everywhere: list[Place]) -> str:
    named = [p for p in everywhere if matches(pattern, p.name)]
    if not named:
        return f"a target must match something; got {pattern!r}: {describe(options, pattern)}"
    reasons = (_why_not(place) for place in named[:3])
    return (
        f"a target must be adaptable; got {pattern!r}, which is {', '.join(reasons)}: "
        f"{describe(options, pattern)}"
    )


def _why_not(place: Place) -> str:
    kind = registered_kind(place.module)
    reason = kind.refuse(place.module) if kind is not None and kind.refuse is not None else None
    kind_name = type_name(type(place.module)).rpartition(".")[2]
    return f"{place.name} ({kind_name}: {reason or 'no matrix of its own to adapt'})"


def _companions(
    kept: list[Candidate], options: list[Candidate], dropped: set[str]
) -> list[Candidate]:
    names = {
        join(c.name, part)
        for c in kept
        if isinstance(c.target, nn.Module)
        for part in kind_of(c.target).companions
    }
    return [c for c in options if c.name in names - dropped]


def _check_excluded(exclude: str | Sequence[str], options: list[Candidate]) -> None:
    for pattern in (exclude,) if isinstance(exclude, str) else exclude:
        if not any(matches(pattern, c.name) for c in options):
            raise TargetError(
                f"exclude must match something; got {pattern!r}: {describe(options, pattern)}"
            )


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a name, or the end of it after a dot."""
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None
    except re.error as error:
        raise TargetError(
            f"a pattern must be a regular expression; got {pattern!r}: {error}"
        ) from error


def matches_any(patterns: str | Sequence[str], name: str) -> bool:
    """Whether one of the patterns matches."""
    several = (patterns,) if isinstance(patterns, str) else patterns
    return any(matches(pattern, name) for pattern in several)


def describe(options: Sequence[Candidate], near: str = "") -> str:
    """Return what can be adapted, the nearest names first, in one line."""
    names = [c.name or "(the model itself)" for c in options]
    close = get_close_matches(near, names, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*close, *names]))[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"adaptable are {', '.join(shown)}{more}" if names else "nothing here is adaptable"


def join(*parts: str) -> str:
    """Join the nonempty parts of a dotted name."""
    return ".".join(part for part in parts if part)
