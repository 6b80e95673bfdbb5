"""Files with an object of JSON on each line, a chunk of lines at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from itertools import chain, islice
from typing import Any

import numpy as np

from lowrank_opt.errors import DataError, LowRankError
from lowrank_opt.tables.delimited import CHUNK, BadLines, Chunk, is_number, is_rounded
from lowrank_opt.tables.ids import as_ids
from lowrank_opt.tables.named import Named
from lowrank_opt.tables.opening import reading

_SHOWN = 60
# Whole numbers below are float64.
_EXACT = 2.0**53


class JsonLines:
    """Records such as ``{"user": "ann", "film": "heat", "stars": 5}``: ids are text or integers.

    Ids keep the type that they have in JSON: ``7`` and ``"7"`` are two. The names in the first
    record are the columns; what other fields hold, and whether all records have them, does not
    matter. Empty lines are fine at the end only.

    Parameters
    ----------
    path : str
        What messages call the file.
    stream : text stream
        Read once, from where it is.
    texts, number, values, weight, max_bad_lines
        As in `DelimitedFile`.

    Attributes
    ----------
    names, texts, number, weight, reading, bad, unterminated, header
        As in `DelimitedFile`. A line is malformed that holds no object, or not all that is read:
        text or a whole number for an id, a finite number (as text too) for a value.

    Raises
    ------
    DataError
        If the first line holds no object, a column does not exist, or nothing says which are meant.
    """

    header: bool = False
    unterminated: bool = False
    shape: tuple[int, int] | None = None

    def __init__(
        self,
        path: str,
        stream: TextIOWrapper,
        texts: Sequence[str | int | None] = (None, None),
        number: str | int | None = None,
        *,
        values: bool | None = False,
        weight: str | int | None = None,
        max_bad_lines: int = 0,
    ) -> None:
        import msgspec

        self._decode = msgspec.json.Decoder().decode
        # The second for what is nested too deeply, the third for bytes that are no UTF-8.
        self._faults = (msgspec.DecodeError, RecursionError, UnicodeEncodeError)
        self.path: str
        self.bad: BadLines
        self.path, self.bad, self._stream = path, BadLines(max_bad_lines), stream
        with reading(path):
            self._first: str = stream.readline()
        names = self._names()
        self._found = Named.of(path, names, texts, number, values=values, weight=weight)
        self.names: list[str] | None = names
        self.texts: list[int] = self._found.texts
        self.number: int | None = self._found.number
        self.weight: int | None = self._found.weight
        self.reading: str = f"{self._found.reading}; a record a line"

    def chunks(self) -> Iterator[Chunk]:
        """Yield ids and values, in order; once.

        Raises
        ------
        DataError
            If there are more malformed lines than allowed, naming the first ones.
        """
        number = 1
        with reading(self.path), self._stream:
            rest = chain([self._first], self._stream)
            while lines := list(islice(rest, CHUNK)):
                chunk = self._fast(lines) or self._slow(lines, number)
                number += len(lines)
                if len(self.bad.numbers) > self.bad.limit:
                    count = len(self.bad.numbers)
                    raise DataError(
                        f"at most {self.bad.limit} lines may be malformed; {self.path!r} has "
                        f"{count} in its first {number - 1}: {self.bad}: repair them, or allow "
                        "more bad lines"
                    )
                if len(chunk) > 0:
                    yield chunk

    def _names(self) -> list[str]:
        try:
            record = self._decode(self._first)
        except self._faults as error:
            raise self._no_record(str(error)) from error
        if not isinstance(record, dict):
            raise self._no_record(f"{type(record).__name__} is no object")
        names = [name for name, _ in json.loads(self._first, object_pairs_hook=list)]
        if len(set(names)) < len(names):
            raise self._no_record("a name comes twice")
        return names

    def _no_record(self, fault: str) -> DataError:
        shown = self._first.rstrip("\n")[:_SHOWN]
        return DataError(
            f"a file of JSON must have an object on each line; {self.path!r} begins with "
            f"{shown!r}: {fault}: write one record a line, as "
            "frame.to_json(path, orient='records', lines=True) does"
        )

    def _fast(self, lines: list[str]) -> Chunk | None:
        """Return the columns if all records plainly hold text or integers, and numbers."""
        used = self._found.used
        if self.bad.blank:
            return None
        try:
            records = [*map(self._decode, lines)]
            found = [None if x is None else [r[x] for r in records] for x in used]
        except (*self._faults, KeyError, TypeError, OverflowError):
            return None
        ids, numbers = found[:2], found[2:]
        if any(column is None or not set(map(type, column)) <= {str, int} for column in ids):
            return None
        if any(not set(map(type, column or ())) <= {int, float} for column in numbers):
            return None
        parts = [None if x is None else np.array(x, np.float64) for x in numbers]
        if any(x is not None and not (np.abs(x) < _EXACT).all() for x in parts):
            return None
        return Chunk((ids[0] or [], ids[1] or []), *parts)

    def _slow(self, lines: list[str], number: int) -> Chunk:
        """Return the columns of the well-formed lines; take note of the others."""
        errors = (*self._faults, ValueError)
        kept = self.bad.sift((x.strip() for x in lines), number, self._record, errors)
        columns = [[record[c] for record in kept] for c in range(4)]
        values, weights = (
            None if k is None else np.array(column, np.float64)
            for k, column in zip((self.number, self.weight), columns[2:], strict=True)
        )
        return Chunk((columns[0], columns[1]), values, weights)

    def _record(self, line: str) -> list[Any]:
        record = self._decode(line)
        if not isinstance(record, dict):
            raise ValueError(f"{type(record).__name__} instead of an object")
        lacking = [x for x in self._found.used if x is not None and x not in record]
        if lacking:
            raise ValueError(f"no {lacking[0]!r}")
        row, col, *numbers = (None if x is None else record[x] for x in self._found.used)
        names = self._found.used[2:]
        return [
            _id(row),
            _id(col),
            *(None if n is None else _number(x) for n, x in zip(names, numbers, strict=True)),
        ]


def _id(value: object) -> str | int:
    if isinstance(value, str) or type(value) is int:
        return value
    if isinstance(value, float):
        try:
            return as_ids([value], "ids").tolist()[0]
        except LowRankError:
            raise ValueError(f"{value!r} is no id: not whole, or not exact") from None
    raise ValueError(f"{value!r} is no id: neither text nor a whole number")


def _number(value: object) -> float:
    if isinstance(value, str) and is_number(value) and not is_rounded(value):
        return float(value)
    if isinstance(value, int | float) and math.isfinite(value) and float(value) == value:
        return float(value)
    raise ValueError(f"{value!r} is not a finite number")
