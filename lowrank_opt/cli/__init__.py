"""The command ``lowrank-opt``: each file of `commands` is one of its commands.

Commands read, call the library, and print; nothing is computed here.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules

from lowrank_opt import __version__
from lowrank_opt.cli import commands as room
from lowrank_opt.cli.streams import prepare_streams, silence_stdout
from lowrank_opt.errors import LowRankError

_ERROR, _FAULT, _INTERRUPTED = 2, 70, 130
_STATUS = (
    "Exit status: 0 done; 1 what was asked for does not hold (not converged, an error above "
    "--max-rmse, a broken law or bound); 2 a wrong call, data that cannot be used or output that "
    "cannot be written; 70 a fault of this program; 130 Ctrl-C."
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
        fault of this program; 130 after an interrupt from the keyboard.
    """
    prepare_streams()
    options = _parser().parse_args(arguments)
    try:
        with _seldom_collected():
            status = int(options.run(options))
            if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
                sys.stdout.flush()
            return status
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return _ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted, as in `lowrank-opt ... | head`.
        silence_stdout()
        return 0
    except OSError as error:
        if error.filename is not None:
            raise
        silence_stdout()
        reason = error.strerror or error
        print(f"error: the output must be writable; got standard output: {reason}", file=sys.stderr)
        return _ERROR
    except Exception:
        import traceback

        traceback.print_exc()
        print("error: a fault of lowrank-opt, not of its input: please report it", file=sys.stderr)
        return _FAULT


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lowrank-opt",
        description="Complete matrices, verify and inspect low-rank models.",
        epilog=_STATUS,
    )
    parser.add_argument("--version", action="version", version=f"lowrank-opt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for module in iter_modules(room.__path__, f"{room.__name__}."):
        import_module(module.name).add_to(commands)
    return parser
