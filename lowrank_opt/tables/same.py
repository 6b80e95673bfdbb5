"""When two ids are one: what equal ones have in common, and equality that could mean two things."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_opt.errors import ObservationError

# Two ids of one of these types can be equal without being of one kind.
_WITH_PARTS = frozenset({"tuple", "frozenset", "Interval"})
DATES = (dt.date, np.datetime64)
_ATTOSECONDS = {
    **{"W": 604800 * 10**18, "D": 86400 * 10**18, "h": 3600 * 10**18, "m": 60 * 10**18},
    **{"s": 10**18, "ms": 10**15, "us": 10**12, "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1},
}


@dataclass(frozen=True)
class _Instant:
    """Attoseconds since 1970, or a date so far away that only its text is exact; no id is equal."""

    at: int | str


def keys_of(items: list[Any]) -> list[Any]:
    """Return what equal ids have in common: dates are equal whatever their unit and library."""
    dates = any(issubclass(kind, DATES) for kind in set(map(type, items)))
    return [_key(x) for x in items] if dates else items


def _key(value: object) -> object:
    if isinstance(value, np.datetime64):
        return _instant(value)
    if isinstance(value, dt.datetime) and value.tzinfo is None:
        # Those of pandas have nanoseconds.
        return _instant(getattr(value, "asm8", np.datetime64(value)))
    if type(value) is dt.date:
        return _instant(np.datetime64(value))
    return value


def _instant(value: np.datetime64) -> _Instant:
    """Return when it is, as a number without a bound."""
    unit, count = np.datetime_data(value.dtype)
    if unit in ("Y", "M"):
        days = value.astype("M8[D]")
        if days.astype(value.dtype) != value:
            return _Instant(str(value))
        value, unit, count = days, "D", 1
    return _Instant(int(value.astype(np.int64)) * count * _ATTOSECONDS[unit])


def refuse_equal(items: list[Any], kinds: set[type], name: str) -> None:
    """Raise if two ids are equal without being of one type, as True and 1; dates may be."""
    if len(kinds) < 2 and not any(kind.__name__ in _WITH_PARTS for kind in kinds):
        return
    first: dict[Any, Any] = {}
    for x in items:
        y = first.setdefault(x, x)
        if y is not x and not isinstance(x, DATES) and _make(x) != _make(y):
            raise one_or_two(y, x, name, "are equal")


def refuse_dates(first: dict[Any, Any], items: list[Any], keys: list[Any]) -> None:
    """Raise if dates have one key, and are not the same: what came first, by keys, and what comes.

    A day is found by the midnight that it begins with; and Python calls both hours equal that come
    twice when summer ends.
    """
    days = {key: x for key, x in zip(keys, items, strict=True) if type(x) is dt.date}
    for key, x in zip(keys, items, strict=True):
        if key in days and not _equal(days[key], x):
            raise one_or_two(days[key], x, "ids", "begin at the same time")
        y = first[key]
        if y is x or not (isinstance(x, dt.datetime) and isinstance(y, dt.datetime)):
            continue
        if x.tzinfo is y.tzinfo and x.utcoffset() != y.utcoffset():
            raise one_or_two(y, x, "ids", "are equal, an hour apart")


def _equal(day: object, moment: object) -> bool:
    try:
        return bool(day == moment)
    except OverflowError:  # a unit of NumPy has no room for the other date
        return False


def one_or_two(x: object, y: object, name: str, fault: str) -> ObservationError:
    """Return the error that names both."""
    return ObservationError(
        f"{name} must be told apart by their values; got {x!r} and {y!r}, which {fault}, so that "
        "they could be one id or two: convert them to one type"
    )


def _make(value: object) -> object:
    """Return the type of an id, and those of its parts."""
    if isinstance(value, tuple):
        return type(value), tuple(_make(x) for x in value)
    if isinstance(value, frozenset):
        return type(value), frozenset((x, _make(x)) for x in value)
    if type(value).__name__ == "Interval":
        interval: Any = value
        return type(value), _make(interval.left), _make(interval.right)
    return type(value)
