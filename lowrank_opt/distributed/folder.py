"""A folder of Parquet files to entries of every process: each reads its share of the row groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from lowrank_opt.distributed.exchange import Processes
from lowrank_opt.distributed.ids import Dictionary
from lowrank_opt.distributed.split import own_rows
from lowrank_opt.errors import DataError
from lowrank_opt.extras import extra
from lowrank_opt.observations import Observations
from lowrank_opt.observations.coordinates import Duplicates
from lowrank_opt.tables.delimited import Chunk
from lowrank_opt.tables.parquet import ColumnFile


@dataclass(frozen=True, eq=False)
class PartialRatings:
    """The entries of this process's rows, and the dictionaries that named them.

    Parameters
    ----------
    observations : Observations
    users, items : Dictionary
    """

    observations: Observations
    users: Dictionary
    items: Dictionary


def read_folder(
    path: str | PathLike[str],
    *,
    row: str | int | None = None,
    col: str | int | None = None,
    value: str | int | None = None,
    duplicates: Duplicates = "error",
    cut: bool = False,
    processes: Processes | None = None,
) -> PartialRatings:
    """Read one Parquet file, or all of a folder in the order of their names.

    Called in all processes, all of which see the files. No process reads more than its share, or
    keeps more ids than those whose hash falls to it.

    Parameters
    ----------
    path : str or path
    row, col, value : str or int, optional
        The columns, as in `read_ratings`.
    duplicates : {"error", "mean", "last"}
        "last" is the last one in the order of files and rows.
    cut : bool
        Number the rows within each process, as `cut_rows`.
    processes : Processes, optional

    Raises
    ------
    DataError
        If there is no Parquet file, or one cannot be read or used.
    ObservationError
        If a pair is repeated, or a process has no entries.
    """
    found = Processes() if processes is None else processes
    users, items = Dictionary(found, "users"), Dictionary(found, "items")
    chunks, parts = _chunks(Path(path), found, row, col, value), list[tuple[torch.Tensor, ...]]()
    while True:
        chunk = next(chunks, None)
        # Dictionaries are exchanged by all, also by those that have read their share.
        if not int(found.summed(torch.tensor([int(chunk is not None)]))):
            break
        ids = ((), ()) if chunk is None else chunk.texts
        codes = users.codes(ids[0]), items.codes(ids[1])
        values = np.empty(0) if chunk is None or chunk.values is None else chunk.values
        parts.append((*codes, torch.tensor(values, dtype=torch.float64)))
    if not parts:
        raise DataError(f"a table must have lines; got none in {str(path)!r}")
    users.finish()
    items.finish()
    i, j, v = (torch.cat(x) for x in zip(*parts, strict=True))
    rows, cols, shape = users.positions(i), items.positions(j), (users.size, items.size)
    lossless = int(found.summed(torch.tensor([int(bool((v.float().double() != v).any()))]))) == 0
    v = v.float() if lossless else v
    entries = own_rows(rows, cols, v, shape, duplicates=duplicates, cut=cut, processes=found)
    return PartialRatings(entries, users, items)


def _chunks(
    path: Path,
    processes: Processes,
    row: str | int | None,
    col: str | int | None,
    value: str | int | None,
) -> Iterator[Chunk]:
    for file, groups in _share(path, processes):
        table = ColumnFile(file, (row, col), value, values=True, row_groups=groups)
        yield from table.chunks()


def _share(path: Path, processes: Processes) -> Iterator[tuple[Path, list[int]]]:
    """Yield files and row groups whose lines begin in this process's range of all lines."""
    with extra("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"a folder must have Parquet files; got none in {str(path)!r}")
    try:
        heads = [pq.read_metadata(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"a file must be readable; got {str(path)!r}: {error}") from error
    lines, before = sum(head.num_rows for head in heads), 0
    for file, head in zip(files, heads, strict=True):
        groups = list[int]()
        for k in range(head.num_row_groups):
            if before * processes.size // max(lines, 1) == processes.rank:
                groups.append(k)
            before += head.row_group(k).num_rows
        if groups:
            yield file, groups
