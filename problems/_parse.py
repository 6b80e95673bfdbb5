"""Parse files of ratings: streamed, and every bad line named by its number.

Not through `lowrank_opt.tables`, which takes ids and values from files of any kind: these have four
numbers a line, and whatever else is in them is damage of a published file.
"""

import io
import re
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from lowrank_opt.errors import DataError, ObservationError
from problems._variants import RatingsFile

BLOCK_BYTES = 1 << 24
# Columns of the tables of this module, one row a line of the file.
COLUMNS = np.dtype([("user", "i8"), ("item", "i8"), ("rating", "f4"), ("timestamp", "i8")])


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
        If a line does not hold four numbers, the header is another, the file is cut off or empty.
    ObservationError
        If a rating is not finite or outside the scale, or an id is not positive.
    """
    _check_header(stream, file, where)
    line = file.first_line
    tables: list[npt.NDArray[np.void]] = []
    for block in _blocks(stream, line, where):
        table = _parse_block(block, file, line, where)
        _check_values(table, line, scale, where)
        tables.append(table)
        line += len(table)
    if not tables:
        raise DataError(f"{where} must hold at least one rating; it is empty; fetch it again")
    return np.concatenate(tables)


def _check_header(stream: IO[bytes], file: RatingsFile, where: str) -> None:
    if file.header is None:
        return
    header = stream.readline(4096).decode("utf-8", errors="replace").rstrip("\r\n")
    if header != file.header:
        raise DataError(
            f"{where}, line 1: must be the header {file.header!r}; got {header[:80]!r}; "
            "fetch the file again"
        )


def _blocks(stream: IO[bytes], line: int, where: str) -> Iterator[bytes]:
    """Yield blocks of whole lines; every line of a whole file ends in a newline."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            whole = rest + head + newline
            yield whole
            line += whole.count(b"\n")
            rest = tail
            continue
        rest += block
    if rest:
        raise DataError(
            f"{where}, line {line}: the last line must end in a newline; got {_shown(rest)}; "
            "the file is cut off: fetch it again"
        )


def _parse_block(block: bytes, file: RatingsFile, line: int, where: str) -> npt.NDArray[np.void]:
    # numpy's fast reader takes separators of one character.
    text = block.replace(b"::", b"\t") if file.separator == "::" else block
    delimiter = "\t" if file.separator == "::" else file.separator
    try:
        with warnings.catch_warnings():
            # A warning here means a fraction read as an integer, or nothing to read.
            warnings.simplefilter("error")
            table = np.loadtxt(
                io.BytesIO(text), dtype=COLUMNS, delimiter=delimiter, comments=None, ndmin=1
            )
    except (ValueError, OverflowError, Warning) as error:
        raise _explain(block, file, line, where, str(error)) from error
    # The reader skips blank lines.
    if len(table) != block.count(b"\n"):
        raise _explain(block, file, line, where, "a blank line")
    return table


def _explain(block: bytes, file: RatingsFile, line: int, where: str, reason: str) -> DataError:
    """Find the first bad line, one by one; only reached once the fast reader has refused."""
    rule = f"must hold user, item, rating, timestamp separated by {file.separator!r}"
    for number, raw in enumerate(block.splitlines(), start=line):
        if not _is_good(raw.decode("latin-1").split(file.separator)):
            return DataError(
                f"{where}, line {number}: {rule}; got {_shown(raw)}; correct it or fetch the file "
                "again"
            )
    return DataError(f"{where}: each line {rule}; got {reason}; fetch the file again")


def _is_good(fields: list[str]) -> bool:
    if len(fields) != 4:
        return False
    user, item, rating, timestamp = fields
    return all(_is_int64(text) for text in (user, item, timestamp)) and _is_float(rating)


def _is_int64(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_values(
    table: npt.NDArray[np.void], line: int, scale: tuple[float, float], where: str
) -> None:
    low, high = scale
    # Written so that NaN fails.
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


def _shown(raw: bytes) -> str:
    return repr(raw[:80].decode("latin-1"))
