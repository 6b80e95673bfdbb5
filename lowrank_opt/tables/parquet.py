"""Files of columns, Parquet and Arrow, a batch at a time through pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_opt.errors import DataError, LowRankError
from lowrank_opt.extras import extra
from lowrank_opt.tables.arrays import WHOLE, as_reals
from lowrank_opt.tables.delimited import BadLines, Chunk
from lowrank_opt.tables.ids import as_ids
from lowrank_opt.tables.named import Named

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

BATCH = 1 << 16


class ColumnFile:
    """A Parquet or Arrow (Feather) file: ids have the type that the file gives them.

    Parameters
    ----------
    path : str or path
    texts, number, values, weight
        As in `DelimitedFile`; columns always have names.
    row_groups : list of int, optional
        Of a Parquet file, those to be read; all by default.

    Attributes
    ----------
    names, texts, number, weight, reading, bad, unterminated, header
        As in `DelimitedFile`.

    Raises
    ------
    DataError
        If the file cannot be read, or a column does not exist.
    MissingExtraError
        If pyarrow is not installed.
    """

    header: bool = True
    unterminated: bool = False
    shape: tuple[int, int] | None = None

    def __init__(
        self,
        path: str | PathLike[str],
        texts: Sequence[str | int | None] = (None, None),
        number: str | int | None = None,
        *,
        values: bool | None = False,
        weight: str | int | None = None,
        row_groups: list[int] | None = None,
    ) -> None:
        self.path: str
        self.bad: BadLines
        self.path, self.bad = fspath(path), BadLines()
        self._batches, names = _opened(self.path, row_groups)
        found = Named.of(self.path, names, texts, number, values=values, weight=weight)
        self._found = found
        self.names: list[str] | None = names
        self.texts: list[int] = found.texts
        self.number: int | None = found.number
        self.weight: int | None = found.weight
        self.reading: str = found.reading

    def chunks(self) -> Iterator[Chunk]:
        """Yield ids and values, in order; once.

        Raises
        ------
        DataError
            If an id is missing, a value is no finite number, or the file is damaged.
        """
        wanted = self._found.used
        first = 1
        for batch in _reading(self.path, self._batches([x for x in wanted if x is not None])):
            columns = [
                None if name is None else batch.column(batch.schema.get_field_index(name))
                for name in wanted
            ]
            lists = tuple(
                self._ids(str(name), column, first)
                for name, column in zip(wanted[:2], columns[:2], strict=True)
            )
            values, weights = (
                None if column is None else self._numbers(str(name), column, first)
                for name, column in zip(wanted[2:], columns[2:], strict=True)
            )
            first += batch.num_rows
            if batch.num_rows > 0:
                yield Chunk(lists, values, weights)

    def _numbers(self, name: str, column: ChunkedArray, first: int) -> np.ndarray:
        import pyarrow as pa

        try:
            values = column.cast(pa.float64(), safe=True).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"values must be numbers; {self.path!r} has {column.type} in column {name!r}: "
                f"convert it ({str(error)[:80]})"
            ) from error
        if (np.abs(values) >= WHOLE).any() and not pa.types.is_floating(column.type):
            try:
                as_reals(column.to_pylist(), f"column {name!r}")
            except LowRankError as error:
                raise DataError(f"{self.path!r}, from row {first} on: {error}") from error
        if (bad := ~np.isfinite(values)).any():
            k = int(bad.argmax())
            raise DataError(
                f"values must be finite; {self.path!r} has {values[k]!r} in column {name!r}, row "
                f"{first + k}: leave missing entries out"
            )
        return values

    def _ids(self, name: str, column: Any, first: int) -> list[Any]:  # noqa: ANN401
        import pyarrow.types as kinds

        ids = column.to_pylist()
        if None in ids:
            raise DataError(
                f"ids must not be missing; {self.path!r} has none in column {name!r}, row "
                f"{first + ids.index(None)}: drop those lines"
            )
        if not (kinds.is_floating(column.type) or kinds.is_nested(column.type)):
            return ids
        try:
            # Whole numbers are integers, as in frames; others and lists are no ids.
            return as_ids(ids, f"column {name!r}").tolist()
        except LowRankError as error:
            raise DataError(
                f"ids must be ids; {self.path!r}, from row {first} on: {error}"
            ) from error


def _opened(
    path: str, row_groups: list[int] | None = None
) -> tuple[Callable[[list[str]], Iterator[Any]], list[str]]:
    """Return a function from names to batches, and the names there are."""
    with extra("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with open(path, "rb") as file:
            begin = file.read(6)
        if not begin.startswith((b"PAR1", b"ARROW1")):
            raise DataError(
                "a file must be what its ending says, Parquet or Arrow; got "
                f"{path!r}, which begins with {begin!r}: rename it, or write it again"
            )
        if begin.startswith(b"PAR1"):
            source = pq.ParquetFile(path)
            names = list(source.schema_arrow.names)
            return lambda columns: source.iter_batches(BATCH, row_groups, columns), names
        reader = pa.ipc.open_file(path)
        count = reader.num_record_batches
        batches = (reader.get_batch(k) for k in range(count))
        return lambda _: islice(batches, count), list(reader.schema.names)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"a file must be readable; got {path!r}: {reason}") from error


def _reading(path: str, batches: Iterator[Any]) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from batches
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"a file must be readable; got {path!r}: {error}") from error


def write_columns(path: str | PathLike[str], columns: dict[str, list[object]]) -> None:
    """Write a Parquet file of columns of one length."""
    with extra("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        table = pa.table({name: _as_column(ids) for name, ids in columns.items()})
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise DataError(
            f"a column of Parquet must have values of one type; {path!s:.80} would have others: "
            f"{str(error)[:80]}: write CSV, or lines of JSON"
        ) from error
    # Given a path, pyarrow removes what is there when it fails: a pipe, a link.
    with open(path, "wb") as file:
        pq.write_table(table, file)


def _as_column(ids: list[object]) -> object:
    import pyarrow as pa

    try:
        return pa.array(ids)
    except OverflowError:
        # Positive integers of 64 bits; larger ones have no type.
        return pa.array(ids, pa.uint64())
