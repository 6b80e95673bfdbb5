"""Rating files larger than memory: ids become positions while the lines go by."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.errors import DataError, ObservationError
from lowrank_opt.observations.observations import Observations
from lowrank_opt.observations.sparsity import sort_pairs
from lowrank_opt.tables.arrays import narrowed
from lowrank_opt.tables.delimited import BadLines
from lowrank_opt.tables.files import Codes, TableFile, open_table

Duplicates: TypeAlias = Literal["error", "mean", "last"]


@dataclass(frozen=True)
class Ratings:
    """What a file of ratings holds.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        In float32; in float64 if there are integers beyond 2**24, which float32 would merge.
    row_ids, col_ids : list of str
        Of each row and each column, in the order in which they came first. From Parquet and
        JSON, of the type that the file has.
    bad : BadLines
        The malformed lines, which were left out.
    merged : int
        How many lines repeated a pair.
    unterminated : bool
        Whether the last line may have been cut: it ends without an end-of-line.
    reading : str
        Which columns were read, and why these.
    """

    observations: Observations
    row_ids: list[str]
    col_ids: list[str]
    bad: BadLines
    merged: int
    unterminated: bool
    reading: str = ""


def read_ratings(
    path: str | PathLike[str],
    *,
    row: str | int | None = None,
    col: str | int | None = None,
    value: str | int | None = None,
    weight: str | int | None = None,
    separator: str | None = None,
    header: bool | None = None,
    duplicates: Duplicates = "error",
    max_bad_lines: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ratings:
    r"""Read a file of ids and values, a chunk at a time: fields, JSON lines or Parquet.

    The text is never held as a whole: for each line, 12 bytes are kept while reading, and
    4 for a weight. Ids are
    text, taken as they are: ``007`` and ``7`` are two.

    Parameters
    ----------
    path : str or path
        Compressed or not; see `lowrank_opt.tables.files.open_table`.
    row, col, value : str or int, optional
        The columns, by name or by position, counted from one. By default those with the usual
        names, or the only three; see `lowrank_opt.tables.columns`.
    weight : str or int, optional
        The column of weights, if there is one: nonnegative numbers.
    separator : str, optional
        Found by the first line if not given.
    header : bool, optional
        Whether the first line has the names of the columns. By default that is found out: names
        are no numbers.
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
    file = open_table(
        path,
        (row, col),
        value,
        values=True,
        weight=weight,
        separator=separator,
        header=header,
        max_bad_lines=max_bad_lines,
    )
    row_codes, col_codes = Codes(), Codes()
    if file.shape is not None:
        for codes, size in zip((row_codes, col_codes), file.shape, strict=True):
            codes.of(range(size))
    ids: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]
    numbers: tuple[list[NDArray[np.floating]], list[NDArray[np.floating]]]
    ids, numbers, count = ([], []), ([], []), 0
    for chunk in file.chunks():
        assert chunk.values is not None, "a column of numbers was asked for"
        ids[0].append(row_codes.of(chunk.texts[0]))
        ids[1].append(col_codes.of(chunk.texts[1]))
        numbers[0].append(narrowed(chunk.values))
        if chunk.weights is not None:
            numbers[1].append(chunk.weights.astype(np.float32))
        count += len(chunk)
        if progress is not None:
            progress(count)
    if not ids[0]:
        raise DataError(f"a file of ratings must have a line of data; {file.path!r} has none")
    rows, cols, values = (_joined(part) for part in (*ids, numbers[0]))
    weights = _joined(numbers[1]) if numbers[1] else None
    shape = (len(row_codes), len(col_codes))
    row_ids, col_ids = cast("list[str]", list(row_codes)), cast("list[str]", list(col_codes))
    try:
        observations = Observations(rows, cols, values, shape, weights, duplicates=duplicates)
    except ObservationError:
        _raise_repetition(rows, cols, shape, file, row_ids, col_ids)
        raise
    merged = len(rows) - len(observations)
    return Ratings(
        observations, row_ids, col_ids, file.bad, merged, file.unterminated, file.reading
    )


def _joined(parts: list[NDArray[np.int32]] | list[NDArray[np.floating]]) -> Tensor:
    """Return one array, and free the parts."""
    whole = np.concatenate(parts)
    parts.clear()
    return torch.from_numpy(whole)


def _raise_repetition(
    rows: Tensor,
    cols: Tensor,
    shape: tuple[int, int],
    file: TableFile,
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


def _line(position: int, file: TableFile) -> int:
    """Return the number, from one, of the line that holds the well-formed record `position`."""
    number = position + 1 + int(file.header)
    bad = file.bad.numbers
    while (shifted := position + 1 + int(file.header) + bisect_left(bad, number + 1)) != number:
        number = shifted
    return number
