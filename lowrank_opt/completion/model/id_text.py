"""An id of any common type as a piece of JSON that says which type it is."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Hashable
from decimal import Decimal
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from lowrank_opt.errors import DataError
from lowrank_opt.extras import extra


def id_to_json(value: Hashable, name: str = "ids") -> str:
    """Return JSON from which `id_from_json` makes an equal id of the same type.

    Raises
    ------
    DataError
        If its type is not one of text, bytes, numbers, truth values, dates and times (also those
        of NumPy and pandas), UUIDs, or tuples of them.

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
        If it is not what that writes.
    """
    return _typed(json.loads(text))


def _plain(value: Hashable, name: str) -> list[Any]:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return [str(value.dtype), int(value.astype(np.int64))]
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if isinstance(value, tuple):
        return ["tuple", [_plain(x, name) for x in value]]
    if kind.__name__ == "Timestamp" and kind.__module__.startswith("pandas"):
        zone = None if value.tz is None else str(value.tz)  # pyright: ignore[reportAttributeAccessIssue]
        return ["Timestamp", [int(value.value), zone]]  # pyright: ignore[reportAttributeAccessIssue]
    if kind.__name__ in _WRITERS and kind in _TYPES:
        return [kind.__name__, _WRITERS[kind.__name__](value)]
    raise DataError(
        f"{name} in a file must be text, numbers, dates or tuples of them; got {kind.__name__}: "
        "convert them, with str for example, and fit again"
    )


def _typed(pair: list[Any]) -> Hashable:
    kind, content = pair
    if kind == "tuple":
        return tuple(_typed(x) for x in content)
    if kind == "Timestamp":
        with extra("experiments"):
            import pandas as pd
        stamp = pd.Timestamp(content[0], unit="ns", tz="UTC")
        return stamp.tz_convert(content[1]) if content[1] else stamp.tz_localize(None)
    if kind in _READERS:
        return _READERS[kind](content)
    if kind.startswith(("datetime64", "timedelta64")):
        return cast("Hashable", np.array(content, dtype=np.int64).astype(kind)[()])
    raise ValueError(f"an id of unknown type {kind!r}")


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


_TYPES: frozenset[type] = frozenset(
    {str, int, bool, float, bytes, dt.date, dt.datetime, dt.timedelta, dt.time, UUID, Decimal}
)
_WRITERS: dict[str, Callable[[Any], object]] = {
    "str": str,
    "int": str,
    "bool": bool,
    "float": float.hex,
    "bytes": bytes.hex,
    "date": dt.date.isoformat,
    "datetime": _written,
    "timedelta": lambda x: [x.days, x.seconds, x.microseconds],
    "time": dt.time.isoformat,
    "UUID": str,
    "Decimal": str,
}
_READERS: dict[str, Callable[[Any], Hashable]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "date": dt.date.fromisoformat,
    "datetime": _instant,
    "timedelta": lambda x: dt.timedelta(*x),
    "time": dt.time.fromisoformat,
    "UUID": UUID,
    "Decimal": Decimal,
}
