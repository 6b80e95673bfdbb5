"""The first line of a text file: names or data, and which columns are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrank_opt.errors import DataError, ShapeError
from lowrank_opt.tables.columns import Chosen, choose, header_like

_SHOWN = 60
# Seconds since 1970 of March 1973: no rating scale reaches so far.
_FIRST_TIME = 10**8
# What stands for a value that is missing, or is none.
_NO_VALUES = frozenset(
    {"na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "nil", "\\n"}
    | {"inf", "-inf", "infinity", "-infinity", "true", "false"}
)
# A sign or a currency and a digit.
_VALUE_LIKE = re.compile(r"[^\w\s]{0,2}\s?\d|[^\w]+$")


@dataclass(frozen=True)
class Found:
    """What the first line says.

    Parameters
    ----------
    header : bool
    texts : list of int
        Positions of the columns of ids, from zero.
    number, weight : int or None
        Of the column of numbers, and of that of weights.
    reading : str
        In words.
    """

    header: bool
    texts: list[int]
    number: int | None
    weight: int | None
    reading: str


@dataclass(frozen=True)
class Heading:
    """The fields of the first line of a file.

    Parameters
    ----------
    path : str
        For messages.
    fields : list of str
    known : callable or None
        Whether two ids are known.
    is_number : callable
        Whether a field is a number.
    weight : str, int or None
        The column of weights, which is then none of the others.
    """

    path: str
    fields: list[str]
    known: Callable[[str, str], bool] | None
    is_number: Callable[[str], bool]
    weight: str | int | None = None

    def find(
        self,
        texts: Sequence[str | int | None],
        number: str | int | None,
        *,
        values: bool | None,
        header: bool | None,
    ) -> Found:
        """Return whether the line has names, and the columns that are asked for or found.

        Raises
        ------
        DataError
            If a column does not exist, or nothing says which are meant.
        """
        asked = (*texts, number)
        if header is None:
            header = self._has_names((*asked, self.weight), values=values is not False)
        weight = None if self.weight is None else self._position(self.weight, header)
        if all(x is not None for x in texts) and (number is not None or values is not True):
            chosen = [self._position(x, header) for x in asked if x is not None]
            reason = "as asked for"
        else:
            chosen, reason = self._chosen(asked, weight, values=values, header=header)
        if len(set(chosen[:3])) < len(chosen[:3]):
            raise self._unclear("the same column would be read twice")
        if weight in chosen:
            raise self._unclear("the column of weights would be read twice")
        at, rest = chosen[: len(texts)], chosen[len(texts) :]
        last = rest[0] if rest else None
        for k in (last, weight):
            self._check_header(k, header)
        roles = [*zip(("rows", "columns", "values"), [*at[:2], *rest], strict=False)]
        roles += [] if weight is None else [("weights", weight)]
        return Found(header, at, last, weight, f"{self._spoken(roles, header)} ({reason})")

    def _has_names(self, asked: Sequence[str | int | None], *, values: bool) -> bool:
        if any(isinstance(x, str) and not x.isdecimal() for x in asked) or header_like(self.fields):
            return True
        numbers = [self.is_number(field) for field in self.fields]
        position = next((int(x) for x in asked[-2:] if x is not None), None)
        if position is not None and 1 <= position <= len(numbers):
            if not numbers[position - 1]:
                self._check_name(self.fields[position - 1])
            return not numbers[position - 1]
        # A name is no number.
        if any(numbers):
            return False
        if values and len(self.fields) > 2:
            for field in self.fields[2:]:
                self._check_name(field)
            return True
        ids = self._ids(asked)
        if self.known is not None and self.known(*ids):
            return False
        raise self._unknown("which could be both")

    def _check_name(self, field: str) -> None:
        """Raise if a field where a value would be is none, but hardly a name: NA, or $5."""
        text = field.strip().strip('"')
        if text and (text.lower() in _NO_VALUES or _VALUE_LIKE.match(text)):
            raise self._unknown(
                f"which could be names, or ids and {text!r} for a value that is missing or "
                "written in another way"
            )

    def _unknown(self, fault: str) -> DataError:
        return DataError(
            f"the first line must be known to hold names or ids; {self.path!r} begins with "
            f"{'  '.join(self.fields)[:_SHOWN]!r}, {fault}: pass header=True or False, "
            "or --header or --no-header"
        )

    def _ids(self, asked: Sequence[str | int | None]) -> list[str]:
        at = [k if x is None else int(x) - 1 for k, x in enumerate(asked[:2])]
        return [self.fields[k] if 0 <= k < len(self.fields) else "" for k in at]

    def _chosen(
        self,
        asked: Sequence[str | int | None],
        weight: int | None,
        *,
        values: bool | None,
        header: bool,
    ) -> tuple[list[int], str]:
        partly = any(x is not None for x in asked)
        found = self._by_rule(weight, values=values, header=header, partly=partly)
        default = [0, 1, 2] if found is None else [found.row, found.col, found.value]
        reason = "the first" if found is None else found.reason
        needed = asked if values is not False or asked[2] is not None else asked[:2]
        chosen = [
            default[k] if x is None else self._position(x, header) for k, x in enumerate(needed)
        ]
        kept = [k for k in chosen if k is not None]
        if len(set(kept)) < len(kept) or max(kept) >= len(self.fields):
            raise self._unclear("the same column would be read twice, or one that is not there")
        return kept, reason

    def _by_rule(
        self, weight: int | None, *, values: bool | None, header: bool, partly: bool
    ) -> Chosen | None:
        try:
            if header:
                names = ["" if k == weight else x.strip() for k, x in enumerate(self.fields)]
                return choose(names, values=values, what="a file")
            return self._by_position(weight, values=values)
        except ShapeError as error:
            if partly:
                return None
            raise self._unclear(str(error)) from error

    def _by_position(self, weight: int | None, *, values: bool | None) -> Chosen:
        at = [k for k in range(len(self.fields)) if k != weight]
        last = self.fields[at[-1]] if at else ""
        if len(at) == 4 and last.isdecimal() and int(last) >= _FIRST_TIME:
            at.pop()
        if len(at) == 2 and values is not True:
            return Chosen(at[0], at[1], None, "the first")
        if len(at) == 3:
            return Chosen(at[0], at[1], None if values is False else at[2], "the first")
        raise ShapeError(f"without names, {len(self.fields)} columns could mean several things")

    def _position(self, column: str | int, header: bool) -> int:
        if header and isinstance(column, str):
            stripped = [name.strip() for name in self.fields]
            if stripped.count(column) != 1:
                raise DataError(
                    f"a column must be one of {stripped[:20]}; got {column!r} for "
                    f"{self.path!r}: name another one, or pass header=False, or --no-header"
                )
            return stripped.index(column)
        if not (str(column).isdecimal() and 1 <= int(column) <= len(self.fields)):
            raise DataError(
                f"a position of a column must be in 1..{len(self.fields)}; got {column!r} for "
                f"{self.path!r}: columns have names only if the first line gives them"
            )
        return int(column) - 1

    def _check_header(self, number: int | None, header: bool) -> None:
        if header and number is not None and self.is_number(self.fields[number]):
            raise DataError(
                f"the first line must have the names of the columns; {self.path!r} begins with "
                f"{','.join(self.fields)[:_SHOWN]!r}: pass header=False, or --no-header"
            )

    def _unclear(self, fault: str) -> DataError:
        return DataError(
            f"it must be known which columns hold rows, columns and values; {self.path!r} begins "
            f"with {'  '.join(self.fields)[:_SHOWN]!r}: {fault}: name the columns, with --user, "
            "--item and --value on the command line"
        )

    def _spoken(self, roles: list[tuple[str, int]], header: bool) -> str:
        return ", ".join(
            f"{role} {self.fields[k].strip() if header else k + 1}" for role, k in roles
        )
