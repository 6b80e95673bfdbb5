"""Which columns of a table hold rows, columns and values: one rule for frames and for files.

Those that are asked for; else those with the usual names, in any order; else the first ones, if
there are as many as are needed. Columns without a name are the index that a frame was saved with,
and times are no ratings: both are left out. Anything else could mean two things, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_opt.errors import ShapeError

_ROWS = (
    "user users userid uid userno usernumber username customer customerid reader readerid "
    "reviewer reviewerid member memberid row rows rowid account"
)
_COLS = (
    "item items itemid iid itemno itemnumber movie movies movieid film filmid product productid "
    "book books bookid isbn song songid track trackid artist artistid game gameid joke jokeid "
    "asin parentasin business businessid anime animeid col cols colid column"
)
_VALUES = (
    "rating ratings starrating bookrating overall value values stars star score scores y "
    "preference plays playcount listens clicks quantity weight count"
)
_TIMES = "timestamp timestamps time date datetime ts unixtime unixreviewtime reviewtime ratedat"
_INDEX = ("", "unnamed0", "indexlevel0")

_NAMES = {
    "row": frozenset(_ROWS.split()),
    "col": frozenset(_COLS.split()),
    "value": frozenset(_VALUES.split()),
}
_TIME_NAMES = frozenset(_TIMES.split())


@dataclass(frozen=True)
class Chosen:
    """Positions of columns, from zero.

    Parameters
    ----------
    row, col : int
    value : int or None
        Where there are none, of pairs.
    reason : str
        Why these: "asked for", "by name", or "the first".
    """

    row: int
    col: int
    value: int | None
    reason: str


def by_name(names: Sequence[str], *, values: bool) -> Chosen | None:
    """Return the columns with the usual names; None unless there is one for each role."""
    found: dict[str, int] = {}
    for role in ("row", "col", *(["value"] if values else [])):
        at = [k for k, name in enumerate(names) if _simple(name) in _NAMES[role]]
        if len(at) != 1:
            return None
        found[role] = at[0]
    return Chosen(found["row"], found["col"], found.get("value"), "by name")


def choose(names: Sequence[str], *, values: bool | None, what: str) -> Chosen:
    """Return the columns of a table with names; those of its values if there are any.

    Parameters
    ----------
    names : sequence of str
    values : bool or None
        Whether values are needed; None if they are taken where there is a third column.
    what : str
        For messages.

    Raises
    ------
    ShapeError
        If nothing says which columns are meant.
    """
    used = [k for k, name in enumerate(names) if _simple(name) not in _INDEX]
    plain = [k for k in used if _simple(names[k]) not in _TIME_NAMES]
    wanted = (True, False) if values is None else (values,)
    for with_values in wanted:
        # Two columns are a pair in the order in which they stand.
        if len(plain) > 2 and (chosen := by_name(names, values=with_values)) is not None:
            return chosen
    named = by_name(names, values=False) if len(plain) == 2 else None
    if named is not None and named.row > named.col:
        row, col = names[named.row], names[named.col]
        raise ShapeError(
            f"two columns are rows and columns, in this order; got {what} of {col!r} and {row!r}, "
            f"which could mean the order or the names: put {row!r} first, or name them in another "
            "way"
        )
    for candidates in (plain, used):
        if len(candidates) == 2 and values is not True:
            return Chosen(candidates[0], candidates[1], None, "the first")
        if len(candidates) == 3:
            value = None if values is False else candidates[2]
            return Chosen(candidates[0], candidates[1], value, "the first")
    raise ShapeError(_unclear(names, what, values))


def header_like(names: Sequence[str]) -> bool:
    """Whether fields look like names of columns: two of them are usual ones."""
    simple = [_simple(name) for name in names]
    roles = [any(name in known for name in simple) for known in _NAMES.values()]
    return sum(roles) >= 2


def _unclear(names: Sequence[str], what: str, values: bool | None) -> str:
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    need = "2 columns, row and column id" + ("" if values is False else ", and one of values")
    cure = "select the columns, in this order"
    if len(names) > 3:
        first, last = names[:3], names[-3:]
        cure = (
            f"it could mean {', '.join(map(repr, first))} or {', '.join(map(repr, last))}: " + cure
        )
    return f"index pairs have {need}; got {what} of {len(names)} feature(s) [{shown}]: {cure}"


def _simple(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
