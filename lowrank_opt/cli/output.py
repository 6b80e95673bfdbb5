"""Where tables go: standard output or a file; as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from lowrank_opt.cli.streams import output
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

    A regular file, or a new one, is written on its file system, takes over the mode and owner of
    the old one and then the name. Links are followed. Devices and pipes are written to directly.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    try:
        # Asked of the path as it is: of pipes, /dev/fd has links that lead nowhere.
        old = os.stat(path) if os.path.exists(path) else None
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(None, "Is a directory")
        if old is not None and not stat.S_ISREG(old.st_mode):
            yield Path(path)
            return
        if old is not None and not os.access(path, os.W_OK):
            raise PermissionError(None, "Permission denied")
        with _becoming(Path(os.path.realpath(path)), old) as part:
            yield part
    except BrokenPipeError:
        raise
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{noun} must be writable; got {path!r}: {error.strerror or error}"
        ) from error


@contextmanager
def _becoming(target: Path, old: os.stat_result | None) -> Generator[Path]:
    """Yield a place that becomes the target at the end.

    Where the system has such, it is a file without a name, of which nothing is left if the process
    is killed.
    """
    name = target.with_name(f".lowrank-opt.{os.urandom(8).hex()}.part")
    handle, place = _nameless(target.parent)
    try:
        if handle is None:
            place = name
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if old is not None:
            _take_over(place, old)
        yield place
        if handle is not None:
            # With a folder, the system is asked to follow the link; it stands for nothing else.
            os.link(place, name, src_dir_fd=handle, follow_symlinks=True)
        name.replace(target)
    finally:
        name.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _nameless(folder: Path) -> tuple[int | None, Path]:
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        return None, folder
    place = Path(f"/proc/self/fd/{handle}")
    if place.exists():
        return handle, place
    os.close(handle)
    return None, folder


def _take_over(place: Path, old: os.stat_result) -> None:
    with suppress(OSError, AttributeError):
        # Of another user, it stays theirs if that may be.
        os.chown(place, old.st_uid, old.st_gid)
    place.chmod(stat.S_IMODE(old.st_mode))


@contextmanager
def _text(out: str | None) -> Generator[TextIO]:
    if out is None:
        yield output()
        return
    with (
        replacing(out) as path,
        path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


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
