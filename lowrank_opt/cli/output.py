"""Where tables go: standard output or a file; as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from lowrank_opt.errors import DataError, OptionError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_PARQUET = (".parquet", ".pq")


class Table(Protocol):
    """Takes the rows of a table; numbers are numbers."""

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        """Write rows, in the order of the columns."""
        ...


def add_output(parser: ArgumentParser) -> None:
    """Add the options that say where a table goes, and in which form."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where to write: CSV, or Parquet if it ends in .parquet (- is standard output)",
    )
    parser.add_argument("--json", action="store_true", help="write a line of JSON for each row")
    parser.add_argument("--quiet", action="store_true", help="no word on what was read")


@contextmanager
def table(options: Namespace, columns: Sequence[str]) -> Generator[Table]:
    """Yield a table with these columns that goes where the options say.

    Raises
    ------
    DataError
        If it cannot be written.
    OptionError
        If a form of output does not fit.
    """
    out = None if options.out in (None, "-") else str(options.out)
    if out is not None and Path(out).suffix.lower() in _PARQUET:
        if options.json:
            raise OptionError(f"--json does not go into Parquet; got --out {out}: use one of them")
        with replacing(out) as path:
            parquet = _Parquet(path, columns)
            yield parquet
            parquet.close()
        return
    with _text(out) as stream:
        yield _Json(stream, columns) if options.json else _Csv(stream, columns)


@contextmanager
def replacing(path: str, noun: str = "the output") -> Generator[Path]:
    """Yield a path to write to; what is there is replaced whole, or stays.

    A regular file, or a new one, is written beside its place, takes over the mode of the old one
    and then the name. Links are followed. Devices and pipes are written to directly.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "Is a directory")
        if mode is not None and not stat.S_ISREG(mode):
            yield target
            return
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(None, "Permission denied")
        with _beside(target, mode) as part:
            yield part
            part.replace(target)
    except BrokenPipeError:
        raise
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{noun} must be writable; got {path!r}: {error.strerror or error}"
        ) from error


@contextmanager
def _beside(target: Path, mode: int | None) -> Generator[Path]:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        part.chmod(stat.S_IMODE(mode) if mode is not None else 0o666 & ~_umask())
        yield part
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _text(out: str | None) -> Generator[TextIO]:
    if out is not None:
        with replacing(out) as path, path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    if sys.stdout is None or sys.stdout.closed:  # pyright: ignore[reportUnnecessaryComparison]
        raise DataError("the output must be writable; got a standard output that is closed")
    yield sys.stdout
    sys.stdout.flush()


class _Csv:
    def __init__(self, stream: TextIO, columns: Sequence[str]) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.writer.writerow(columns)

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        self.writer.writerows([_short(x) for x in row] for row in rows)


class _Json:
    def __init__(self, stream: TextIO, columns: Sequence[str]) -> None:
        self.stream, self.columns = stream, columns

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            line = dict(zip(self.columns, row, strict=True))
            self.stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


class _Parquet:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.parts: list[list[object]] = [[] for _ in columns]

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            for part, x in zip(self.parts, row, strict=True):
                part.append(x)

    def close(self) -> None:
        from lowrank_opt.tables.parquet import write_columns

        write_columns(self.path, dict(zip(self.columns, self.parts, strict=True)))


def _short(x: object) -> object:
    return f"{x:.6g}" if isinstance(x, float) else x
