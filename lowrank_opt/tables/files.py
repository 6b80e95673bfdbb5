"""Files of interactions: text, JSON lines, Parquet, Arrow and Matrix Market."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import PurePath
from typing import BinaryIO, Protocol

import numpy as np

from lowrank_opt.errors import DataError
from lowrank_opt.tables.delimited import BadLines, Chunk, DelimitedFile
from lowrank_opt.tables.ids import Ids, as_ids
from lowrank_opt.tables.json_lines import JsonLines
from lowrank_opt.tables.matrices import from_scipy
from lowrank_opt.tables.opening import opened, reading, stream_name, text_of
from lowrank_opt.tables.parquet import ColumnFile
from lowrank_opt.tables.triplets import Triplets
from lowrank_opt.tables.whole import WholeFile

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_JSON_LINES = (".jsonl", ".ndjson")
_SNIFFED = 64


class TableFile(Protocol):
    """A file whose columns are known, and are read in chunks.

    `DelimitedFile` says what its attributes are; `shape` is that of a matrix, whose ids are the
    positions in it.
    """

    path: str
    shape: tuple[int, int] | None
    names: list[str] | None
    header: bool
    texts: list[int]
    number: int | None
    weight: int | None
    reading: str
    bad: BadLines
    unterminated: bool

    def chunks(self) -> Iterator[Chunk]:
        """Yield the columns, once."""
        ...


class Codes(dict[object, int]):
    """Numbers ids in the order in which they are asked for."""

    def __missing__(self, text: object) -> int:
        code = self[text] = len(self)
        return code

    def of(self, ids: Sequence[object]) -> np.ndarray:
        """Return the numbers of ids, int32."""
        return np.fromiter(map(self.__getitem__, ids), np.int32, len(ids))


def open_table(
    path: str | PathLike[str],
    texts: Sequence[str | int | None] = (None, None),
    number: str | int | None = None,
    *,
    values: bool | None = False,
    weight: str | int | None = None,
    separator: str | None = None,
    header: bool | None = None,
    max_bad_lines: int = 0,
    known: Callable[[str, str], bool] | None = None,
) -> TableFile:
    """Return a file whose columns have been found; of text, nothing else is read yet.

    Parameters
    ----------
    path : str or path
        Ends in one of `FORMATS`; "-" is standard input. All else is text, compressed or not, see
        `lowrank_opt.tables.opening`: records of JSON, if it ends in .jsonl or .ndjson or begins
        with one, or else lines of fields.
    texts, number, values, weight, separator, header, max_bad_lines, known
        As in `lowrank_opt.tables.delimited.DelimitedFile`.

    Raises
    ------
    DataError
        If the file cannot be read, or nothing says what its columns mean; or an option is given
        that is of another format.
    """
    if (special := FORMATS.get(ending(path))) is not None:
        given: dict[str, object]
        given = {"separator": separator, "header": header, "max_bad_lines": max_bad_lines or None}
        _refuse_of_text(path, given)
        return special(path, texts, number, values=values, weight=weight)
    source = _standard_input() if fspath(path) == "-" else path
    name = stream_name(source)
    with reading(name):
        data = opened(source)
        begin = data.peek(_SNIFFED)[:_SNIFFED].removeprefix(b"\xef\xbb\xbf")
    if ending(path) in _JSON_LINES or re.match(rb'\{\s*"', begin):
        _refuse_of_text(path, {"separator": separator, "header": header})
        return JsonLines(
            name,
            text_of(data),
            texts,
            number,
            values=values,
            weight=weight,
            max_bad_lines=max_bad_lines,
        )
    return DelimitedFile(
        data,
        texts,
        number,
        values=values,
        weight=weight,
        separator=separator,
        header=header,
        max_bad_lines=max_bad_lines,
        known=known,
        name=name,
    )


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise DataError("a file must be readable; got a standard input that is closed")
    return sys.stdin.buffer


def read_file(
    path: str | PathLike[str],
    *,
    values: bool | None,
    known: Callable[[str, str], bool] | None = None,
) -> Triplets:
    """Read a table, or a matrix, as a whole.

    Ids in text are text, character by character: ``007`` and ``7`` are two; other formats have
    types.

    Parameters
    ----------
    path : str or path
        As for `open_table`.
    values : bool or None
        Whether a column of values is needed, or taken if there is one.
    known : callable, optional
        As in `open_table`.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    file = open_table(path, values=values, known=known)
    if isinstance(file, WholeFile):
        return file.found
    rows, cols = Codes(), Codes()
    parts: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
    for chunk in file.chunks():
        parts[0].append(rows.of(chunk.texts[0]))
        parts[1].append(cols.of(chunk.texts[1]))
        if chunk.values is not None:
            parts[2].append(chunk.values)
    if not parts[0]:
        raise DataError(f"a file must have a line of data; {file.path!r} has none")
    numbers = np.concatenate(parts[2]) if parts[2] else None
    names = None
    if file.names is not None:
        names = (file.names[file.texts[0]], file.names[file.texts[1]])
    return Triplets(_spread(rows, parts[0]), _spread(cols, parts[1]), numbers, names=names)


def ending(path: str | PathLike[str]) -> str:
    """Return the last suffix that is none of a compression, in small letters."""
    suffixes = [x.lower() for x in PurePath(path).suffixes]
    return next((x for x in reversed(suffixes) if x not in _COMPRESSED), "")


def _spread(codes: Codes, parts: list[np.ndarray]) -> Ids:
    return as_ids(list(codes), "ids")[np.concatenate(parts)]


def _refuse_of_text(path: str | PathLike[str], options: dict[str, object]) -> None:
    given = " and ".join(name for name, value in options.items() if value is not None)
    if given:
        raise DataError(
            f"{given} can be given for text alone; got {fspath(path)!r}, which is of another "
            "format: leave it out"
        )


def _read_matrix_market(path: str | PathLike[str]) -> Triplets:
    from scipy.io import mmread

    try:
        found = mmread(path)
    except (OSError, ValueError) as error:
        name = PurePath(path).name
        raise DataError(f"interactions must be readable; got {name!r}: {error}") from error
    if not hasattr(found, "tocoo"):
        raise DataError(
            f"a Matrix Market file must be of coordinates; {str(path)!r} is of an array"
        )
    return from_scipy(found)


# The formats that are no text, by their endings: a class with the face of `TableFile`, or a
# function that returns `Triplets`, in a `WholeFile`.
FORMATS: dict[str, Callable[..., TableFile]] = {
    ".parquet": ColumnFile,
    ".pq": ColumnFile,
    ".feather": ColumnFile,
    ".arrow": ColumnFile,
    ".mtx": partial(WholeFile, _read_matrix_market),
}
