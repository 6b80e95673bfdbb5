"""Which arguments a function of the user's takes, and a call with those."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


def keywords_of(make: Callable[..., object]) -> frozenset[str]:
    """Return which of ``dtype`` and ``device`` a factory may be passed by name."""
    try:
        return _keywords(make)
    except TypeError:  # not hashable
        return _keywords.__wrapped__(make)


@lru_cache(maxsize=64)  # Asked at each construction, and slower than most of them.
def _keywords(make: Callable[..., object]) -> frozenset[str]:
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return frozenset()
    kinds = {name: p.kind for name, p in parameters.items()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds.values()
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return frozenset(n for n in ("dtype", "device") if kinds.get(n) in by_name or takes_any)


def call(
    make: Callable[..., T], orders: Mapping[int, tuple[str, ...]], available: Mapping[str, object]
) -> T:
    """Call a factory with those of the available arguments that it takes.

    By name where it has a parameter of that name; else in the order that belongs to the number of
    positional parameters that are left, or in that of the longest order where some have names.
    """
    positional, named = _arguments(make, orders, available)
    words = {parameter: available[name] for parameter, name in named.items()}
    return make(*(available[name] for name in positional), **words)


def taken(
    make: Callable[..., object],
    orders: Mapping[int, tuple[str, ...]],
    available: Mapping[str, object],
) -> set[str]:
    """Return the names of the arguments that `call` would pass."""
    positional, named = _arguments(make, orders, available)
    return {*positional, *named.values()}


def _arguments(
    make: Callable[..., object],
    orders: Mapping[int, tuple[str, ...]],
    available: Mapping[str, object],
) -> tuple[list[str], dict[str, str]]:
    """Return what is passed by position, and what by which name."""
    parameters = inspect.signature(make).parameters.values()
    own = {p.name: p.name for p in parameters if p.name in available}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = [
        p
        for p in parameters
        if p.kind in positional and p.default is inspect.Parameter.empty and p.name not in own
    ]
    longest = max(orders.values(), key=len, default=())
    words = tuple(w for w in longest if w not in own) if own else orders.get(len(missing), ())
    if any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in missing) or not own:
        return [*words], own
    return [], {**own, **{p.name: w for p, w in zip(missing, words, strict=False)}}
