"""Files of ratings and pairs on the command line: which columns, what is wrong, and where to."""

from __future__ import annotations

import csv
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lowrank_opt.errors import DataError
from lowrank_opt.tables.delimited import BadLines
from lowrank_opt.tables.files import TableFile
from lowrank_opt.tables.files import open_table as open_file


class Writer(Protocol):
    """Writes lines of CSV."""

    def writerow(self, row: Iterable[object], /) -> object:
        """Write one line."""
        ...

    def writerows(self, rows: Iterable[Iterable[object]], /) -> object:
        """Write lines."""
        ...


def add_columns(parser: ArgumentParser, *, value: bool) -> None:
    """Add the options that say how a file of ratings, or of pairs, is read."""
    group = parser.add_argument_group("the file")
    by = "column, by name or position (by the usual names, or the first three)"
    group.add_argument("--user", metavar="COLUMN", help=f"the users' {by}")
    group.add_argument("--item", metavar="COLUMN", help="the items' column, likewise")
    if value:
        group.add_argument("--value", metavar="COLUMN", help="the values' column, likewise")
    add_format(group)


def add_format(group: object) -> None:
    """Add the options on separators, headers and malformed lines."""
    add: Callable[..., object] = group.add_argument  # pyright: ignore[reportAttributeAccessIssue]
    add("--separator", metavar="TEXT", help="between fields (by the first line)")
    add("--header", action="store_true", default=None, help="the first line has names")
    add(
        "--no-header",
        action="store_false",
        dest="header",
        help="it has data, and columns are numbers, from 1 (by default that is found out)",
    )
    add(
        "--max-bad-lines",
        type=count,
        default=0,
        metavar="N",
        help="leave out up to N malformed lines (%(default)s)",
    )


def count(text: str) -> int:
    """Return a nonnegative integer, for argparse."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be a nonnegative integer; got {text!r}")
    return int(text)


def open_table(
    path: str,
    options: Namespace,
    *,
    value: bool,
    known: Callable[[str, str], bool] | None = None,
) -> TableFile:
    """Return the file, whose columns have been found."""
    return open_file(
        path,
        (options.user, options.item),
        options.value if value else None,
        values=value,
        separator=options.separator,
        header=options.header,
        max_bad_lines=options.max_bad_lines,
        known=known,
    )


def say(message: str) -> None:
    """Write a line to the standard error stream."""
    print(message, file=sys.stderr, flush=True)


def report(path: str, bad: BadLines, unterminated: bool) -> None:
    """Say what was left out of a file, and whether its end may be missing."""
    if bad.numbers:
        say(f"warning: {path}: {len(bad.numbers)} malformed lines left out: {bad}")
    if unterminated:
        say(f"warning: {path}: no end-of-line after the last line, which was taken as complete")


@contextmanager
def writing(path: str | None) -> Generator[Writer]:
    """Yield a writer of CSV lines: to standard output, or to a file that appears when complete.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    if path is None:
        yield csv.writer(sys.stdout, lineterminator="\n")
        return
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield csv.writer(file, lineterminator="\n")
        part.replace(target)
    except DataError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the output must be writable; got {path!r}: {reason}") from error
    finally:
        part.unlink(missing_ok=True)
