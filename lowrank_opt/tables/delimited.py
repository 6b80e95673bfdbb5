"""Columns of a text file, a chunk of lines at a time, with every malformed line accounted for."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from os import PathLike
from typing import BinaryIO, TextIO, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.errors import DataError
from lowrank_opt.tables.arrays import WHOLE
from lowrank_opt.tables.heading import Heading
from lowrank_opt.tables.opening import opened, reading, stream_name, text_of

Floats: TypeAlias = NDArray[np.float64]
T = TypeVar("T")

# Lists of this many lines stay in the cache, and are gone before the garbage collector sees them.
CHUNK = 1 << 12
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")
_LISTED = 5
_SHOWN = 60
_LARGEST = float(np.finfo(np.float32).max)
# All whole numbers of so many digits are float64.
_SAFE = 15


@dataclass
class BadLines:
    """Malformed lines met so far, and how many are allowed.

    Parameters
    ----------
    limit : int
    numbers : list of int
        Counted from one, ascending.
    faults : list of str
        What is wrong with the first few of them.
    blank : list of int
        Empty lines that nothing has followed yet: at the end of a file they are no fault.
    """

    limit: int = 0
    numbers: list[int] = field(default_factory=list[int])
    faults: list[str] = field(default_factory=list[str])
    blank: list[int] = field(default_factory=list[int])

    def sift(
        self,
        lines: Iterable[str],
        number: int,
        parse: Callable[[str], T],
        errors: tuple[type[Exception], ...] = (ValueError,),
    ) -> list[T]:
        """Return what well-formed lines hold, the first of a number; take note of the others."""
        kept = list[T]()
        for k, line in enumerate(lines, start=number):
            if not line.strip():
                self.blank.append(k)
                continue
            for empty in self.blank:
                self.add(empty, "an empty line", "")
            self.blank.clear()
            try:
                kept.append(parse(line))
            except errors as error:
                self.add(k, str(error), line)
        return kept

    def add(self, number: int, fault: str, line: str) -> None:
        """Take note of one."""
        self.numbers.append(number)
        if len(self.faults) < _LISTED:
            shown = line if len(line) <= _SHOWN else line[:_SHOWN] + "..."
            self.faults.append(f"line {number}: {fault}, in {shown!r}")

    def __str__(self) -> str:
        more = len(self.numbers) - len(self.faults)
        return "; ".join(self.faults) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Chunk:
    """Columns of consecutive well-formed lines.

    Parameters
    ----------
    texts : tuple of list of str
        One list for each column of text, never empty strings.
    values : array, shape (k,), or None
        The column of numbers, finite in float32.
    weights : array, shape (k,), or None
        That of weights, likewise.
    """

    texts: tuple[list[str], ...]
    values: Floats | None
    weights: Floats | None = None

    def __len__(self) -> int:
        return len(self.texts[0])


class DelimitedFile:
    r"""A file of lines such as ``ann,matrix,5``: CSV, TSV, ``::``, compressed or not.

    Compressed as `lowrank_opt.tables.opening` says. Every line is a record: a quoted field
    cannot go on in the next line. Each line has as many fields as the first one. Empty lines are
    fine at the end only.
    Not read by pyarrow, which has no separator of two characters, stops at a byte that is no UTF-8
    even in a column that is not read, and does not number the lines that it leaves out.

    Parameters
    ----------
    path : str, path or binary stream
        A stream is read once, from where it is.
    texts : sequence of str, int or None
        Columns of text, those of ids first: the names that the first line gives them, or
        positions, from one. Without a header, text such as ``"2"`` is a position as well. None by
        the rule of `lowrank_opt.tables.columns`.
    number : str or int, optional
        The column of numbers.
    values : bool or None
        Whether a column of numbers is needed if `number` does not name it; None if it is taken
        where there is a third column.
    weight : str or int, optional
        The column of weights; of none, unless it is named.
    separator : str, optional
        By default the first that the first line contains, of ``::``, tab, ``,`` ``;`` ``|`` and
        space.
    header : bool or None
        Whether the first line has names. By default that is found out: names are no numbers.
    max_bad_lines : int
        How many malformed lines are left out; one more is an error.
    known : callable, optional
        Whether the ids of a line are known, which decides where a first line of text could be
        names as well as ids.
    name : str, optional
        What messages call the file; by default its path.

    Attributes
    ----------
    names : list of str or None
        Of all columns, if there is a header.
    texts : list of int
        Positions of the columns of text, from zero.
    number, weight : int or None
    reading : str
        Which columns are read, and why these.
    bad : BadLines
        Those met by `chunks`.
    blank : list of int
        Numbers of the empty lines met by `chunks` behind the last line that is none.
    unterminated : bool
        Whether the last line ends without an end-of-line in one of the columns that are read: it
        may have been cut.

    Raises
    ------
    DataError
        If the file cannot be read, a column does not exist, or nothing says what the columns or
        the first line mean.
    """

    shape: tuple[int, int] | None = None

    def __init__(
        self,
        path: str | PathLike[str] | BinaryIO,
        texts: Sequence[str | int | None] = (None, None),
        number: str | int | None = None,
        *,
        values: bool | None = False,
        weight: str | int | None = None,
        separator: str | None = None,
        header: bool | None = None,
        max_bad_lines: int = 0,
        known: Callable[[str, str], bool] | None = None,
        name: str | None = None,
    ) -> None:
        self.path: str = name or stream_name(path)
        self.bad: BadLines
        self.bad, self.unterminated = BadLines(max_bad_lines), False
        with reading(self.path):
            # Opened once: a pipe cannot be read again.
            self.stream: TextIO = text_of(opened(path))
            self.first: str = self.stream.readline()
        first = self.first.removesuffix("\n")
        if first.startswith(('{"', '[{"')) or first.strip() in ("[", "{") or "\0" in first:
            raise DataError(
                f"a file must hold a table as text in UTF-8; {self.path!r} begins like "
                f"{_likeness(first)}: write CSV or Parquet"
            )
        if not first.strip():
            raise DataError(f"a file must begin with a line of data; {self.path!r} has none")
        if separator and separator not in first:
            raise DataError(
                f"a line must have fields with the separator {separator!r}; {self.path!r} begins "
                f"with {first[:_SHOWN]!r}: leave it out, or name another one"
            )
        self.separator: str = separator or _guess(first, self.path)
        try:
            fields = _split(first, self.separator)
        except csv.Error as error:
            raise DataError(
                f"quotes must match; {self.path!r} begins with {first[:_SHOWN]!r}: {error}"
            ) from error
        self.width: int = len(fields)
        found = Heading(self.path, fields, known, is_number, weight).find(
            texts, number, values=values, header=header
        )
        self.header: bool = found.header
        first_line = "names in the first line" if found.header else "no header"
        self.reading: str = f"{found.reading}; {first_line}"
        self.names: list[str] | None = [name.strip() for name in fields] if found.header else None
        self.texts: list[int]
        self.number: int | None
        self.weight: int | None
        self.texts, self.number, self.weight = found.texts, found.number, found.weight
        self._numbers: list[int] = [k for k in (self.number, self.weight) if k is not None]

    def chunks(self) -> Iterator[Chunk]:
        """Yield the columns, in order, some thousand lines at a time; once.

        Raises
        ------
        DataError
            If there are more malformed lines than allowed, naming the first ones; or the file is
            cut off inside its compressed data.
        """
        number = 1 + int(self.header)
        with reading(self.path), self.stream:
            rest = chain([] if self.header else [self.first], self.stream)
            while lines := list(islice(rest, CHUNK)):
                chunk = self._fast(lines) or self._slow(lines, number)
                number += len(lines)
                if len(self.bad.numbers) > self.bad.limit:
                    raise self._too_many(number - 1)
                if not lines[-1].endswith("\n"):
                    self.unterminated: bool = self.width - 1 in (*self.texts, *self._numbers)
                if len(chunk) > 0:
                    yield chunk

    def _fast(self, lines: list[str]) -> Chunk | None:
        """Return the columns if all lines are plainly well-formed, and none before was empty."""
        text = "".join(lines)
        if self.bad.blank or '"' in text or not _is_unicode(text):
            return None
        if set(map(str.count, lines, repeat(self.separator))) != {self.width - 1}:
            return None
        fields = _flat(text.removesuffix("\n"), self.separator)
        texts = tuple(fields[c :: self.width] for c in self.texts)
        if any("" in set(column) for column in texts):
            return None
        columns = [_parsed(fields[k :: self.width]) for k in self._numbers]
        if any(column is None for column in columns):
            return None
        return self._chunk(texts, columns)

    def _slow(self, lines: list[str], number: int) -> Chunk:
        """Return the columns of the well-formed lines; take note of the others."""
        kept = self.bad.sift((x.removesuffix("\n") for x in lines), number, self._record)
        texts = tuple([f[c] for f in kept] for c in self.texts)
        return self._chunk(
            texts, [np.array([float(f[k]) for f in kept], np.float64) for k in self._numbers]
        )

    def _chunk(self, texts: tuple[list[str], ...], columns: list[Floats | None]) -> Chunk:
        found = dict(zip(self._numbers, columns, strict=True))
        values, weights = (None if k is None else found[k] for k in (self.number, self.weight))
        return Chunk(texts, values, weights)

    def _record(self, line: str) -> list[str]:
        try:
            fields = _split(line, self.separator)
        except csv.Error as error:
            raise ValueError(f"quotes that do not match ({error})") from error
        if len(fields) != self.width:
            raise ValueError(f"{len(fields)} fields instead of {self.width}")
        for c in self.texts:
            if fields[c] == "":
                raise ValueError(f"nothing in column {c + 1}")
            if not _is_unicode(fields[c]):
                raise ValueError(f"column {c + 1} is not UTF-8")
        for c in self._numbers:
            if not is_number(fields[c]) or is_rounded(fields[c]):
                raise ValueError(_no_number(fields[c]))
        return fields

    def _too_many(self, number: int) -> DataError:
        count = len(self.bad.numbers)
        return DataError(
            f"at most {self.bad.limit} lines may be malformed; {self.path!r} has {count} in its "
            f"first {number}: {self.bad}: repair them, or allow more bad lines"
        )


def _parsed(written: list[str]) -> Floats | None:
    """Return numbers, if all are plainly finite ones."""
    try:
        values = np.fromiter(map(float, written), np.float64, len(written))
    except ValueError:
        return None
    # Python reads 1_000 as a number; NaN is not <=.
    if "_" in "".join(written) or not (np.abs(values) <= _LARGEST).all():
        return None
    return None if (np.abs(values) >= WHOLE).any() else values


def _no_number(text: str) -> str:
    if is_number(text):
        return f"{text!r} is a whole number that float64 would round"
    comma = ", but a comma, which could be of decimals or of thousands"
    return f"{text!r} is not a finite number{comma if is_number(text.replace(',', '')) else ''}"


def _likeness(first: str) -> str:
    return "JSON" if first.startswith(("{", "[")) else "binary data, or UTF-16"


def _guess(line: str, path: str) -> str:
    for separator in _SEPARATORS:
        if separator in line:
            return separator
    raise DataError(
        f"a line must have fields with a separator; {path!r} begins with {line[:_SHOWN]!r}: "
        "name the separator"
    )


def _flat(text: str, separator: str) -> list[str]:
    """Return the fields of all lines, one after the other."""
    if len(separator) == 1:
        return text.replace("\n", separator).split(separator)
    # A field that ends in a part of the separator must not run into the next line.
    return [field for line in text.split("\n") for field in line.split(separator)]


def _split(line: str, separator: str) -> list[str]:
    if '"' not in line or len(separator) > 1:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator, strict=True))


def is_number(text: str) -> bool:
    """Whether a field is a finite number, as float32 has it."""
    try:
        return abs(float(text)) <= _LARGEST and "_" not in text
    except ValueError:
        return False


def is_rounded(text: str) -> bool:
    """Whether a whole number is none of float64; what has a point or an exponent may be."""
    digits = text.strip().lstrip("+-")
    return len(digits) > _SAFE and digits.isdecimal() and int(float(digits)) != int(digits)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        # A byte that is not UTF-8 was read as half of a surrogate pair.
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
