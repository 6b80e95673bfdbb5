"""Which weights of a model a target names, and what else there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn
from torch.nn.parameter import is_lazy

from lowrank_opt.errors import OptionError
from lowrank_opt.nn.adapters.part import stored
from lowrank_opt.nn.adapters.slots import (
    LayerSlot,
    WeightSlot,
    join,
)
from lowrank_opt.nn.basis.kinds import kind_of, known_kind, original_type, type_name

Targets = str | Sequence[str] | Callable[[str, nn.Module | nn.Parameter], bool]


@dataclass(frozen=True)
class Candidate:
    """Something that a target may name: a layer with its weights, or one bare parameter."""

    name: str
    target: nn.Module | nn.Parameter
    slots: tuple[WeightSlot, ...]
    linear: bool = False


def candidates(everywhere: Iterable[LayerSlot]) -> list[Candidate]:
    """Return all that can be adapted, in order."""
    return [c for slot in everywhere for c in _candidates_of(slot)]


def _candidates_of(slot: LayerSlot) -> list[Candidate]:
    registered = known_kind(slot.module)
    kind = kind_of(slot.module)
    slots = [WeightSlot(slot, w) for w in kind.weights(slot.module) if _usable(slot.module, w)]
    found = [Candidate(slot.name, slot.module, tuple(slots), kind.linear)] if registered else []
    if not slots or (kind.refuse is not None and kind.refuse(slot.module) is not None):
        return []
    if kind.update is None:
        found += [Candidate(s.name, s.parameter, (s,)) for s in slots]
    return found


def _usable(module: nn.Module, weight: str) -> bool:
    p = stored(module, weight)
    return isinstance(p, nn.Parameter) and not is_lazy(p) and p.ndim > 1 and p.is_floating_point()


def select(
    targets: Targets, everywhere: list[LayerSlot], exclude: str | Sequence[str]
) -> list[WeightSlot]:
    """Return the weights that the targets name, less the excluded ones, each once.

    Raises
    ------
    OptionError
        If a pattern matches nothing, or names something that cannot be adapted.
    """
    options = candidates(everywhere)
    chosen = _matching(targets, options, everywhere)
    dropped = {c.name for c in options if matches_any(exclude, c.name)}
    _check_excluded(exclude, options)
    kept = [c for c in chosen if c.name not in dropped]
    if not kept:
        raise OptionError(
            f"targets must leave something to adapt; got targets={targets!r} with "
            f"exclude={exclude!r}: {describe(options)}"
        )
    with_companions = [*kept, *_companions(kept, options, dropped)]
    return list({s.name: s for c in with_companions for s in c.slots}.values())


def _matching(
    targets: Targets, options: list[Candidate], everywhere: list[LayerSlot]
) -> list[Candidate]:
    if callable(targets):
        return [c for c in options if targets(c.name, c.target)]
    if targets == "all-linear":
        return [c for c in options if c.linear]
    for pattern in (targets,) if isinstance(targets, str) else targets:
        if not any(matches(pattern, c.name) for c in options):
            raise OptionError(_no_match(pattern, options, everywhere))
    return [c for c in options if matches_any(targets, c.name)]


def _no_match(pattern: str, options: list[Candidate], everywhere: list[LayerSlot]) -> str:
    named = [p for p in everywhere if matches(pattern, p.name)]
    if not named:
        return f"a target must match something; got {pattern!r}: {describe(options, pattern)}"
    reasons = (_why_not(slot) for slot in named[:3])
    return (
        f"a target must be adaptable; got {pattern!r}, which is {', '.join(reasons)}: "
        f"{describe(options, pattern)}"
    )


def _why_not(slot: LayerSlot) -> str:
    kind = known_kind(slot.module)
    reason = kind.refuse(slot.module) if kind is not None and kind.refuse is not None else None
    kind_name = type_name(original_type(slot.module)).rpartition(".")[2]
    return f"{slot.name} ({kind_name}: {reason or 'no matrix of its own to adapt'})"


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
            raise OptionError(
                f"exclude must match something; got {pattern!r}: {describe(options, pattern)}"
            )


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a name, or the end of it after a dot."""
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None
    except re.error as error:
        raise OptionError(
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
