"""An id of any kind as a piece of JSON that says which type it is: what has none is no id."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.extras import extra

# Those that come back whatever their value is.
_PLAIN: frozenset[type] = frozenset({str, int, bool, bytes, dt.date, dt.timedelta, UUID, Decimal})


def id_to_json(value: Hashable, name: str = "ids") -> str:
    """Return JSON from which `id_from_json` makes an equal id of the same type.

    Raises
    ------
    DataError
        If its type is not one of text, bytes, numbers, truth values, dates and times (also those
        of NumPy and pandas), UUIDs, paths, addresses, intervals, or tuples and sets of them; types
        that derive from these are others.

    Examples
    --------
    >>> id_to_json(("a", 7)), id_from_json(id_to_json(("a", 7)))
    ('["tuple",[["str","a"],["int","7"]]]', ('a', 7))
    """
    return json.dumps(_plain(value, name), separators=(",", ":"))


def id_from_json(text: str) -> Hashable:
    """Return the id that `id_to_json` wrote.

    Raises
    ------
    ValueError
        If it is not what that writes, or cannot be here, as a path of Windows elsewhere.
    """
    return _typed(json.loads(text))


def check_lasting(ids: Iterable[Hashable], name: str) -> None:
    """Raise unless each id would come back from a file, equal and of its type.

    Raises
    ------
    ObservationError
        If one would not: a member of an enumeration, an object of a class of your own.

    Examples
    --------
    >>> check_lasting([7, "7", Fraction(1, 2), (dt.date(2000, 1, 1), "ann")], "ids")
    """
    lost = next((x for x in ids if type(x) not in _PLAIN and not _comes_back(x)), None)
    if lost is not None:
        kind = type(lost)
        raise ObservationError(
            f"{name} must be of a type that a saved model gives back: text, numbers, dates and "
            "times, UUIDs, paths, addresses, intervals, tuples of them; got "
            f"{lost!r:.60} of {kind.__module__}.{kind.__qualname__}: convert them, with str for "
            "example, or take .name of the members of an enumeration"
        )


def _comes_back(value: Hashable) -> bool:
    try:
        found = id_from_json(id_to_json(value))
    except (DataError, ValueError, TypeError, OverflowError, LookupError):
        return False
    # Times in zones of pandas can be equal without saying the same.
    said = [x.isoformat() for x in (found, value) if isinstance(x, dt.datetime)]
    same = type(found) is type(value) and found == value and hash(found) == hash(value)
    return same and len(set(said)) < 2


def _plain(value: Hashable, name: str) -> list[Any]:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return [str(value.dtype), int(value.astype(np.int64))]
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if kind is tuple or kind is frozenset:
        parts = [_plain(x, name) for x in cast("Iterable[Hashable]", value)]
        return [kind.__name__, parts if kind is tuple else sorted(parts, key=json.dumps)]
    if kind in _TYPES:
        return [kind.__name__, _WRITERS.get(kind.__name__, str)(value)]
    if kind.__name__ in _OF_PANDAS and kind.__module__.split(".")[0] == "pandas":
        return [kind.__name__, _of_pandas(value, name)]
    raise DataError(
        f"{name} in a file must be text, numbers, dates or tuples of them; got {kind.__name__}: "
        "convert them, with str for example, and fit again"
    )


def _of_pandas(value: Any, name: str) -> list[Any]:  # noqa: ANN401
    match type(value).__name__:
        case "Timestamp":
            # Before there were other units, this was all.
            unit = [] if value.unit == "ns" else [value.unit]
            zone = None if value.tz is None else str(value.tz)
            return [int(value.asm8.astype(np.int64)), zone, *unit]
        case "Timedelta":
            return [int(value.asm8.astype(np.int64)), value.unit]
        case "Period":
            return [value.ordinal, value.freqstr]
        case _:
            return [_plain(value.left, name), _plain(value.right, name), value.closed]


def _typed(pair: list[Any]) -> Hashable:
    kind, content = pair
    if kind in ("tuple", "frozenset"):
        parts = map(_typed, content)
        return tuple(parts) if kind == "tuple" else frozenset(parts)
    if kind in _OF_PANDAS:
        return _to_pandas(kind, content)
    if kind in _READERS:
        try:
            return _READERS[kind](content)
        except NotImplementedError as error:
            raise ValueError(str(error)) from error
    if kind.startswith(("datetime64", "timedelta64")):
        return cast("Hashable", np.array(content, dtype=np.int64).astype(kind)[()])
    raise ValueError(f"an id of unknown type {kind!r}")


def _to_pandas(kind: str, content: list[Any]) -> Hashable:
    with extra("experiments"):
        import pandas as pd
    if kind == "Interval":
        left, right = map(_typed, content[:2])
        return pd.Interval(cast("Any", left), cast("Any", right), content[2])
    if kind == "Period":
        return cast("Hashable", pd.Period(ordinal=content[0], freq=content[1]))
    if kind == "Timedelta":
        return pd.Timedelta(np.timedelta64(content[0], content[1]))
    unit = content[2] if len(content) > 2 else "ns"
    stamp = pd.Timestamp(np.datetime64(content[0], unit))
    return stamp.tz_localize("UTC").tz_convert(content[1]) if content[1] else stamp


def _written(value: dt.datetime) -> object:
    """Return ISO 8601, with the name of the zone where there is one: it knows other offsets too."""
    if not isinstance(value.tzinfo, ZoneInfo):
        return value.isoformat()
    return [value.replace(tzinfo=None).isoformat(), str(value.tzinfo), value.fold]


def _instant(content: str | list[Any]) -> dt.datetime:
    if isinstance(content, str):
        return dt.datetime.fromisoformat(content)
    local, zone, fold = content
    return dt.datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone), fold=fold)


_OF_PANDAS = frozenset({"Timestamp", "Timedelta", "Period", "Interval"})
# Written by `str`, read by the type itself.
_BY_TEXT: tuple[type, ...] = (
    *(str, int, UUID, Decimal, Fraction),
    *(PurePosixPath, PureWindowsPath, PosixPath, WindowsPath),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address),
    *(ipaddress.IPv4Network, ipaddress.IPv6Network),
)
_WRITERS: dict[str, Callable[[Any], object]] = {
    "bool": bool,
    "float": float.hex,
    "bytes": bytes.hex,
    "date": dt.date.isoformat,
    "datetime": _written,
    "timedelta": lambda x: [x.days, x.seconds, x.microseconds],
    "time": dt.time.isoformat,
}
_READERS: dict[str, Callable[[Any], Hashable]] = {
    **{kind.__name__: cast("Callable[[Any], Hashable]", kind) for kind in _BY_TEXT},
    "bool": bool,
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "date": dt.date.fromisoformat,
    "datetime": _instant,
    "timedelta": lambda x: dt.timedelta(*x),
    "time": dt.time.fromisoformat,
}
_TYPES: frozenset[type] = frozenset(
    {*_BY_TEXT, bool, float, bytes, dt.date, dt.datetime, dt.timedelta, dt.time}
)
