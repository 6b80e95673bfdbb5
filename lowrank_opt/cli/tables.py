"""Files of ratings and pairs on the command line: which columns, and what is wrong."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from lowrank_opt.cli.streams import say

if TYPE_CHECKING:
    from lowrank_opt.tables.delimited import BadLines
    from lowrank_opt.tables.files import TableFile


def add_columns(parser: ArgumentParser, *, value: bool, weight: bool = False) -> None:
    """Add the options that say how a file of ratings, or of pairs, is read."""
    group = parser.add_argument_group("the file")
    by = "column, by name or position (by the usual names, or the first three)"
    group.add_argument("--user", metavar="COLUMN", help=f"the users' {by}")
    group.add_argument("--item", metavar="COLUMN", help="the items' column, likewise")
    if value:
        group.add_argument("--value", metavar="COLUMN", help="the values' column, likewise")
    if weight:
        group.add_argument("--weight", metavar="COLUMN", help="of weights, if there is one (none)")
    add_format(group)


def add_format(group: object) -> None:
    """Add the options on separators, headers and malformed lines."""
    add: Callable[..., object] = group.add_argument  # pyright: ignore[reportAttributeAccessIssue]
    add(
        "--separator",
        type=lambda text: text.replace("\\t", "\t"),
        metavar="TEXT",
        help="between fields (by the first line)",
    )
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
    from lowrank_opt.tables.files import open_table as open_file

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


def announce(options: Namespace, path: str, file: TableFile) -> None:
    """Say in one line what is read of a file."""
    if not options.quiet:
        say(f"reading {path}: {file.reading}")


def report(path: str, bad: BadLines, unterminated: bool) -> None:
    """Say what was left out of a file, and whether its end may be missing."""
    if bad.numbers:
        say(f"warning: {path}: {len(bad.numbers)} malformed lines left out: {bad}")
    if unterminated:
        say(f"warning: {path}: no end-of-line after the last line, which was taken as complete")
