"""Rating files larger than memory: ids become positions while the lines go by."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.observations.delimited import BadLines, DelimitedFile
from lowrank_opt.observations.observations import Observations
from lowrank_opt.observations.sparsity import sort_pairs

Duplicates: TypeAlias = Literal["error", "mean", "last"]


@dataclass(frozen=True)
class Ratings:
    """What a file of ratings holds.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        In float32.
    row_ids, col_ids : list of str
        Of each row and each column, in the order in which they came first.
    bad : BadLines
        The malformed lines, which were left out.
    merged : int
        How many lines repeated a pair.
    unterminated : bool
        Whether the last line may have been cut: it ends without an end-of-line.
    """

    observations: Observations
    row_ids: list[str]
    col_ids: list[str]
    bad: BadLines
    merged: int
    unterminated: bool


class _Codes(dict[str, int]):
    """Numbers texts in the order in which they are asked for."""

    def __missing__(self, text: str) -> int:
        code = self[text] = len(self)
        return code

    def of(self, texts: list[str]) -> NDArray[np.int32]:
        return np.fromiter(map(self.__getitem__, texts), np.int32, len(texts))


def read_ratings(
    path: str | PathLike[str],
    *,
    row: str | int,
    col: str | int,
    value: str | int,
    separator: str | None = None,
    header: bool = True,
    duplicates: Duplicates = "error",
    max_bad_lines: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ratings:
    r"""Read a file of ids and values, a chunk at a time: CSV, TSV, ``::``, gzip or not.

    The text is never held as a whole: for each line, 12 bytes are kept while reading. Ids are
    text, taken as they are: ``007`` and ``7`` are two.

    Parameters
    ----------
    path : str or path
    row, col, value : str or int
        The columns, by name or by position, counted from one.
    separator : str, optional
        Found by the first line if not given.
    header : bool
        Whether the first line has the names of the columns.
    duplicates : {"error", "mean", "last"}
        What to do with a pair that comes more than once.
    max_bad_lines : int
        How many malformed lines are left out; one more is an error. A line is malformed if its
        number of fields is not that of the first line, an id is empty or not UTF-8, quotes do not
        match, or the value is not a finite number.
    progress : callable, optional
        Called with the number of lines read so far, every few thousand lines.

    Raises
    ------
    DataError
        If the file cannot be read, a column does not exist, lines are malformed, or there is none.
    ObservationError
        If a pair is repeated; its lines are named.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "ratings.csv")
    ...     _ = path.write_text("user,item,stars\nann,heat,5\nbob,heat,3\n")
    ...     ratings = read_ratings(path, row="user", col="item", value="stars")
    >>> ratings.observations, ratings.row_ids
    (Observations(2 entries of 2 x 1, torch.float32, cpu), ['ann', 'bob'])
    """
    if duplicates not in ("error", "mean", "last"):
        raise ObservationError(
            f"duplicates must be 'error', 'mean' or 'last'; got duplicates={duplicates!r}"
        )
    file = DelimitedFile(
        path, (row, col), value, separator=separator, header=header, max_bad_lines=max_bad_lines
    )
    row_codes, col_codes = _Codes(), _Codes()
    parts: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]], list[NDArray[np.float32]]]
    parts, count = ([], [], []), 0
    for chunk in file.chunks():
        assert chunk.values is not None, "a column of numbers was asked for"
        parts[0].append(row_codes.of(chunk.texts[0]))
        parts[1].append(col_codes.of(chunk.texts[1]))
        parts[2].append(chunk.values.astype(np.float32))
        count += len(chunk)
        if progress is not None:
            progress(count)
    if not parts[0]:
        raise DataError(f"a file of ratings must have a line of data; {file.path!r} has none")
    rows, cols, values = (_joined(part) for part in parts)
    shape = (len(row_codes), len(col_codes))
    row_ids, col_ids = list(row_codes), list(col_codes)
    try:
        observations = Observations(rows, cols, values, shape, duplicates=duplicates)
    except ObservationError:
        _raise_repetition(rows, cols, shape, file, row_ids, col_ids)
        raise
    merged = len(rows) - len(observations)
    return Ratings(observations, row_ids, col_ids, file.bad, merged, file.unterminated)


def _joined(parts: list[NDArray[np.int32]] | list[NDArray[np.float32]]) -> Tensor:
    """Return one array, and free the parts."""
    whole = np.concatenate(parts)
    parts.clear()
    return torch.from_numpy(whole)


def _raise_repetition(
    rows: Tensor,
    cols: Tensor,
    shape: tuple[int, int],
    file: DelimitedFile,
    row_ids: list[str],
    col_ids: list[str],
) -> None:
    """Raise an error with the lines of a repeated pair, if there is one."""
    pairs = sort_pairs(rows.long(), cols.long(), shape)
    count = int(pairs.repeated.sum())
    if count == 0:
        return
    k = int(pairs.repeated.nonzero()[0])
    first, again = (_line(int(x), file) for x in pairs.order[k : k + 2])
    i, j = row_ids[int(pairs.rows[k])], col_ids[int(pairs.cols[k])]
    raise ObservationError(
        f"a pair of ids must come once; {file.path!r} has {count} repetitions, such as "
        f"({i!r}, {j!r}) on lines {first} and {again}: pass duplicates='mean' or 'last', or "
        "--duplicates"
    )


def _line(position: int, file: DelimitedFile) -> int:
    """Return the number, from one, of the line that holds the well-formed record `position`."""
    number = position + 1 + int(file.header)
    bad = file.bad.numbers
    while (shifted := position + 1 + int(file.header) + bisect_left(bad, number + 1)) != number:
        number = shifted
    return number
