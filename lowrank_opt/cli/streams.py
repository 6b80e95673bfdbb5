"""Standard streams of any encoding, closed ones and full ones."""

from __future__ import annotations

import contextlib
import os
import sys
from io import TextIOWrapper


def prepare_streams() -> None:
    """Make standard output take every id: files and pipes in UTF-8, terminals with escapes."""
    if not isinstance(sys.stdout, TextIOWrapper):
        return
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        # Ids that half the surrogates of a file name are in come out as the bytes they were.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def silence_stdout() -> None:
    """Send what is still to be written nowhere: Python would complain again when it closes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
