"""Files of ratings as their publisher has them: every line a rating, every bad one named.

Lines and numbers are read by `lowrank_opt.tables`, as from any file. Here is what GroupLens
promises of its own: the header, whole positive ids and times, the scale, no line left out.
"""

from collections.abc import Iterator
from typing import IO, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.tables.delimited import Chunk, DelimitedFile
from problems._variants import RatingsFile

# Columns of the tables of this module, one row a line of the file.
COLUMNS = np.dtype([("user", "i8"), ("item", "i8"), ("rating", "f4"), ("timestamp", "i8")])
_WHOLE = ("user", "item", "timestamp")


def read_ratings(
    stream: IO[bytes], file: RatingsFile, *, scale: tuple[float, float], where: str
) -> npt.NDArray[np.void]:
    """Read a file of ratings into a table.

    Parameters
    ----------
    stream : binary file
        At its start.
    file : RatingsFile
        Its layout.
    scale : tuple of float
        Lowest and highest rating.
    where : str
        Name of the file for messages.

    Returns
    -------
    structured array, shape (n,)
        Fields `user`, `item` (original ids), `rating`, `timestamp`, in the order of the file.

    Raises
    ------
    DataError
        If a line does not hold three whole numbers and a rating, the header is another, the file is
        cut off or empty.
    ObservationError
        If a rating is outside the scale, or an id is not positive.
    """
    lines = _open(stream, file, where)
    tables = list(_tables(lines, file, scale, where))
    if lines.bad.blank:
        raise DataError(f"{where}, line {lines.bad.blank[0]}: an empty line; remove it")
    if lines.unterminated:
        raise DataError(f"{where}: the last line must end in a newline; fetch the file again")
    if not tables:
        raise DataError(f"{where} must hold at least one rating; it has none; fetch it again")
    return np.concatenate(tables)


def _open(stream: IO[bytes], file: RatingsFile, where: str) -> DelimitedFile:
    lines = DelimitedFile(
        cast("BinaryIO", stream),
        (1, 2, 4),
        3,
        separator=file.separator,
        header=file.header is not None,
        name=where,
    )
    header = None if lines.names is None else file.separator.join(lines.names)
    if header != file.header:
        raise DataError(
            f"{where}, line 1: must be the header {file.header!r}; got {header!r}; "
            "fetch the file again"
        )
    return lines


def _tables(
    lines: DelimitedFile, file: RatingsFile, scale: tuple[float, float], where: str
) -> Iterator[npt.NDArray[np.void]]:
    line = file.first_line
    for chunk in lines.chunks():
        table = _table(chunk, line, where)
        _check_values(table, line, scale, where)
        yield table
        line += len(table)


def _table(chunk: Chunk, line: int, where: str) -> npt.NDArray[np.void]:
    table = np.empty(len(chunk), COLUMNS)
    table["rating"] = chunk.values
    for field, texts in zip(_WHOLE, chunk.texts, strict=True):
        table[field] = whole_numbers(texts, field, line, where)
    return table


def whole_numbers(texts: list[str], field: str, line: int, where: str) -> npt.NDArray[np.int64]:
    """Return text of consecutive lines as the integers that it writes.

    Parameters
    ----------
    texts : list of str
        Written as Python writes an integer: of 007 and 7 one would be the other's id.
    field : str
        Name of the column.
    line : int
        Number of the first line.
    where : str
        Name of the file.

    Raises
    ------
    DataError
        Naming the first line that holds something else.
    """
    try:
        numbers = np.array(texts, dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = None
    if numbers is not None and list(map(str, numbers.tolist())) == texts:
        return numbers
    k = next(k for k, text in enumerate(texts) if not _is_whole(text))
    raise DataError(
        f"{where}, line {line + k}: {field} must be a whole number of 64 bits; got "
        f"{texts[k][:80]!r}; correct it or fetch the file again"
    )


def _is_whole(text: str) -> bool:
    try:
        return str(np.int64(int(text))) == text
    except (ValueError, OverflowError):
        return False


def _check_values(
    table: npt.NDArray[np.void], line: int, scale: tuple[float, float], where: str
) -> None:
    low, high = scale
    inside = (table["rating"] >= low) & (table["rating"] <= high)
    _check_all(inside, table["rating"], line, f"rating must be in {low}..{high}", where)
    for field in ("user", "item"):
        _check_all(table[field] >= 1, table[field], line, f"{field} id must be positive", where)


def _check_all(
    good: npt.NDArray[np.bool_], values: npt.NDArray[np.generic], line: int, rule: str, where: str
) -> None:
    if good.all():
        return
    first = int(np.argmin(good))
    raise ObservationError(
        f"{where}, line {line + first}: {rule}; got {values[first]}; correct or remove the line"
    )
