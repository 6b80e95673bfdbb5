"""The command ``lowrank-opt``, one module for each of its commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lowrank_opt import __version__
from lowrank_opt.cli import complete, evaluate, inspect, plot, predict, recommend, verify
from lowrank_opt.errors import LowRankError

_COMMANDS = (complete, predict, recommend, evaluate, plot, inspect, verify)
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0; 1 if what was asked for does not hold; 2 after an error, whose message goes to the
        standard error stream; 130 after an interrupt from the keyboard.
    """
    options = _parser().parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted, as in `lowrank-opt ... | head`. Python would complain
        # once more while it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lowrank-opt", description="Complete matrices, verify and inspect low-rank models."
    )
    parser.add_argument("--version", action="version", version=f"lowrank-opt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for module in _COMMANDS:
        module.add_to(commands)
    return parser
