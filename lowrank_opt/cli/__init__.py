"""The command ``lowrank-opt``: each file of `commands` is one of its commands.

Commands read, call the library, and print; nothing is computed here.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from lowrank_opt import __version__
from lowrank_opt.cli import commands as room
from lowrank_opt.cli.streams import ended_by_signals, flush, prepare_streams, say, silence
from lowrank_opt.errors import LowRankError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_ERROR, _FAULT, _SIGNALS, _INTERRUPTED = 2, 70, 128, 130
_STATUS = (
    "Exit status: 0 done; 1 what was asked for does not hold (not converged, an error above "
    "--max-rmse, a broken law or bound); 2 a wrong call, data that cannot be used or output that "
    "cannot be written; 70 a fault of this program; 130 Ctrl-C, 143 the signal TERM, 129 HUP."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0; 1 if what was asked for does not hold; 2 after a wrong call, data that cannot be used
        or output that cannot be written, with a message on the standard error stream; 70 after a
        fault of this program; 128 and the number of the signal that ended it: 130 after an
        interrupt from the keyboard.
    """
    if arguments is None:
        # At its end Python looks for cycles in all that was loaded: a tenth of a short command.
        atexit.register(gc.freeze)
    prepare_streams()
    with ended_by_signals() as caught:
        status = _status(arguments)
    return _SIGNALS + caught[-1] if caught and status == _INTERRUPTED else status


def _status(arguments: Sequence[str] | None) -> int:
    status = 0
    try:
        options = _parsed(arguments)
        with _seldom_collected():
            status = int(options.run(options))
            flush()
        return status
    except LowRankError as error:
        say(f"error: {error}")
        return _ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted, as in `lowrank-opt ... | head`.
        silence(sys.stdout)
        return status
    except OSError as error:
        silence(sys.stdout)
        place = "standard output" if error.filename is None else repr(error.filename)
        say(f"error: the output must be writable; got {place}: {error.strerror or error}")
        return _ERROR
    except Exception:
        import traceback

        say(traceback.format_exc(), end="")
        say("error: a fault of lowrank-opt, not of its input: please report it")
        return _FAULT


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return _parser().parse_args(arguments)
    except SystemExit:
        # Help and version have been printed.
        flush()
        raise


@contextmanager
def _seldom_collected() -> Generator[None]:
    """Look for cycles among objects less often: while torch and numba load there are none to free.

    A tenth of the processor time of a short command goes into looking, otherwise.
    """
    before = gc.get_threshold()
    gc.set_threshold(5_000_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Parser(argparse.ArgumentParser):
    """Prints help like any output: argparse keeps quiet about a stream that takes nothing."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout and file is not None:
            file.write(message)
        else:
            say(message, end="")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lowrank-opt",
        description="Complete matrices, verify and inspect low-rank models.",
        epilog=_STATUS,
    )
    parser.add_argument("--version", action="version", version=f"lowrank-opt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    # pkgutil would do, but loads what takes as long as the rest of the help.
    for name in sorted(os.listdir(room.__path__[0])):
        if name.endswith(".py") and not name.startswith("_"):
            import_module(f"{room.__name__}.{name.removesuffix('.py')}").add_to(commands)
    return parser
