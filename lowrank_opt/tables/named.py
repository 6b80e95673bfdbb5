"""Columns of a file that gives each a name: those that are asked for, or found by the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_opt.errors import DataError, ShapeError
from lowrank_opt.tables.columns import Chosen, choose

_ROLES = ("rows", "columns", "values", "weights")


@dataclass(frozen=True)
class Named:
    """Positions of the columns that are read, from zero.

    Parameters
    ----------
    names : list of str
        Of all columns.
    texts : list of int
        Of the two columns of ids.
    number, weight : int or None
    reason : str
        Why these.
    """

    names: list[str]
    texts: list[int]
    number: int | None
    weight: int | None
    reason: str

    @classmethod
    def of(
        cls,
        path: str,
        names: list[str],
        texts: Sequence[str | int | None],
        number: str | int | None,
        *,
        values: bool | None,
        weight: str | int | None,
    ) -> Named:
        """Return the columns asked for, or found; the arguments are those of `DelimitedFile`.

        Raises
        ------
        DataError
            If a column does not exist, or nothing says which are meant.
        """
        heavy = None if weight is None else _position(path, names, weight)
        complete = number is not None or values is not True
        chosen = _asked(path, names, texts, number) if complete else None
        if chosen is None:
            usable = ["" if k == heavy else x for k, x in enumerate(names)]
            chosen = _chosen(path, names, usable, (*texts, number), values=values)
        used = [x for x in (chosen.row, chosen.col, chosen.value, heavy) if x is not None]
        again = [names[k] for k in used if names.count(names[k]) > 1]
        if again:
            raise DataError(
                f"a column that is read must have a name of its own; {path!r} has several called "
                f"{again[0]!r}: rename them"
            )
        if chosen.row == chosen.col or chosen.value in (chosen.row, chosen.col):
            raise DataError(
                f"rows, columns and values must be different columns; got {names[chosen.row]!r} "
                f"twice for {path!r}: name each of them"
            )
        if heavy is not None and heavy in (chosen.row, chosen.col, chosen.value):
            raise DataError(
                f"a column of weights must be one that is not read otherwise; got {weight!r} for "
                f"{path!r}: name the others too"
            )
        return cls(names, [chosen.row, chosen.col], chosen.value, heavy, chosen.reason)

    @property
    def used(self) -> tuple[str | None, ...]:
        """Names of rows, columns, values and weights."""
        at = (*self.texts, self.number, self.weight)
        return tuple(None if k is None else self.names[k] for k in at)

    @property
    def reading(self) -> str:
        """Which columns are read, and why these."""
        roles = zip(_ROLES, self.used, strict=True)
        spoken = ", ".join(f"{role} {name}" for role, name in roles if name is not None)
        return f"{spoken} ({self.reason})"


def _asked(
    path: str, names: list[str], texts: Sequence[str | int | None], number: str | int | None
) -> Chosen | None:
    if any(x is None for x in texts):
        return None
    i, j = (_position(path, names, x) for x in texts if x is not None)
    value = None if number is None else _position(path, names, number)
    return Chosen(i, j, value, "as asked for")


def _chosen(
    path: str,
    names: list[str],
    usable: list[str],
    asked: Sequence[str | int | None],
    *,
    values: bool | None,
) -> Chosen:
    try:
        found = choose(usable, values=values, what="a file")
    except ShapeError as error:
        raise DataError(f"{path!r}: {error}") from error
    default = (found.row, found.col, found.value)
    i, j, v = (
        d if x is None else _position(path, names, x) for d, x in zip(default, asked, strict=True)
    )
    assert i is not None, "ids have columns"
    assert j is not None, "ids have columns"
    return Chosen(i, j, v, found.reason)


def _position(path: str, names: list[str], column: str | int) -> int:
    if column in names:
        return names.index(str(column))
    if str(column).isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1
    raise DataError(f"a column must be one of {names[:20]}; got {column!r} for {path!r}")
