"""Standard streams of any encoding, closed ones and full ones; and signals that end the program."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator
from io import TextIOWrapper
from typing import TextIO

from lowrank_opt.errors import DataError

_ENDING = ("SIGTERM", "SIGHUP")


def prepare_streams() -> None:
    """Make standard output take every id: files and pipes in UTF-8, terminals with escapes."""
    _occupy()
    if not isinstance(sys.stdout, TextIOWrapper):
        return
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        # Ids that half the surrogates of a file name are in come out as the bytes they were.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def output() -> TextIO:
    """Return standard output.

    Raises
    ------
    DataError
        If it is closed.
    """
    if sys.stdout is None or sys.stdout.closed:  # pyright: ignore[reportUnnecessaryComparison]
        raise DataError("the output must be writable; got a standard output that is closed")
    return sys.stdout


def say(message: str, *, end: str = "\n") -> None:
    """Write a line to the standard error stream; one that takes none stops nothing."""
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return
    try:
        print(message, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def flush() -> None:
    """Write what is left of the output, while there is somebody to be told that it failed."""
    if sys.stdout is not None and not sys.stdout.closed:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout.flush()


def silence(stream: TextIO) -> None:
    """Send what is still to be written nowhere: Python would complain again when it closes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def launched() -> bool:
    """Whether torchrun started this process, with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def ended_by_signals() -> Generator[list[int]]:
    """Let what asks a program to end do it as Ctrl-C does: nothing half-written is left.

    Yields the signals that came. In a thread, and in processes that a launcher has started and
    ends itself, they do what they did.
    """
    caught = list[int]()

    def stop(number: int, _: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = dict[int, object]()
    with contextlib.suppress(ValueError):
        for name in () if launched() else _ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield caught
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


def _occupy() -> None:
    """Give closed standard streams a file: the next one opened, a model's, would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
