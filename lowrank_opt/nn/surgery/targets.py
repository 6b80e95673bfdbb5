"""Which weights of a model a target names, and what else there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
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
from lowrank_opt.nn.basis import storage
from lowrank_opt.nn.basis.kinds import kind_of, known_kind, original_type, type_name

ALL_LINEAR = "all-linear"
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
    if p is not None and storage.is_plain(p):
        return p.ndim > 1
    return storage.is_sealed(module, weight)


def select(
    targets: Targets,
    everywhere: list[LayerSlot],
    exclude: str | Sequence[str],
    trained: Collection[nn.Module] = (),
) -> list[WeightSlot]:
    """Return the weights that the targets name, less the excluded ones, each once.

    Parameters
    ----------
    targets, exclude
        As for `adapt`.
    everywhere : list of LayerSlot
    trained : collection of nn.Module
        Which ``"all-linear"`` leaves out, with all in them.

    Raises
    ------
    OptionError
        If a pattern matches nothing, or names something that cannot be adapted.
    """
    every = candidates(everywhere)
    heads = _heads(everywhere, trained) if targets == ALL_LINEAR else set[int]()
    options = [c for c in every if id(c.target) not in heads]
    barren = [slot for slot in _barren(everywhere, options) if id(slot.module) not in heads]
    chosen = _matching(targets, options, everywhere)
    dropped = {c.name for c in options if matches_any(exclude, c.name)}
    _check_excluded(exclude, every, barren)
    _check_barren(targets, [slot for slot in barren if not matches_any(exclude, slot.name)])
    kept = [c for c in chosen if c.name not in dropped]
    if not kept:
        raise OptionError(
            f"targets must leave something to adapt; got targets={targets!r} with "
            f"exclude={exclude!r}: {describe(options)}"
        )
    with_companions = [*kept, *_companions(kept, options, dropped)]
    return list({s.name: s for c in with_companions for s in c.slots}.values())


def _heads(everywhere: list[LayerSlot], trained: Collection[nn.Module]) -> set[int]:
    """Return what ``"all-linear"`` leaves out: output layers of language models, what is trained.

    As in PEFT, where a model of transformers tells its output layer.
    """
    found = {id(part) for module in trained for part in module.modules()}
    for slot in everywhere:
        tell = getattr(slot.module, "get_output_embeddings", None)
        try:
            head = tell() if callable(tell) else None
        except (AttributeError, NotImplementedError):
            head = None
        found |= {id(head)} if isinstance(head, nn.Module) else set()
    return found


def _barren(everywhere: list[LayerSlot], options: list[Candidate]) -> list[LayerSlot]:
    """Return the layers of a kind that is adapted in which nothing can be."""
    named = {c.name for c in options}
    return [
        slot
        for slot in everywhere
        if slot.name not in named
        and (known_kind(slot.module) is not None or _is_called_linear(slot.module))
    ]


def _is_called_linear(module: nn.Module) -> bool:
    """Whether a layer is a linear one by its name, as quantised ones are."""
    return any(cls.__name__ == "Linear" for cls in original_type(module).__mro__)


def _check_barren(targets: Targets, barren: list[LayerSlot]) -> None:
    """Raise OptionError if the targets name a layer in which nothing can be adapted."""
    wrong = [slot for slot in barren if _is_targeted(targets, slot)]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise OptionError(
            "what is targeted must be adaptable; got "
            f"{', '.join(map(_why_not, wrong[:5]))}{more}: exclude what is to be left alone"
        )


def _is_targeted(targets: Targets, slot: LayerSlot) -> bool:
    if callable(targets):
        return bool(targets(slot.name, slot.module))
    if targets == ALL_LINEAR:
        kind = known_kind(slot.module)
        return kind.linear if kind is not None else _is_called_linear(slot.module)
    return matches_any(targets, slot.name)


def _matching(
    targets: Targets, options: list[Candidate], everywhere: list[LayerSlot]
) -> list[Candidate]:
    if callable(targets):
        return [c for c in options if targets(c.name, c.target)]
    if targets == ALL_LINEAR:
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
    return f"{slot.name} ({kind_name}: {reason or _fault(slot.module)})"


def _fault(module: nn.Module) -> str:
    """Return why a layer has no matrix to adapt."""
    weight = stored(module, "weight")
    if isinstance(weight, nn.Parameter) and is_lazy(weight):
        return "its weight is not there yet, call the model once"
    if isinstance(weight, nn.Parameter) and not weight.is_floating_point():
        return f"its weight holds {weight.dtype}, and no matrix of its own to adapt"
    return "no matrix of its own to adapt"


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


def _check_excluded(
    exclude: str | Sequence[str], options: list[Candidate], barren: list[LayerSlot]
) -> None:
    names = [c.name for c in options] + [slot.name for slot in barren]
    for pattern in (exclude,) if isinstance(exclude, str) else exclude:
        if not any(matches(pattern, name) for name in names):
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
