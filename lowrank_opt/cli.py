"""The command ``lowrank-opt``."""

import argparse
import sys
from collections.abc import Sequence

from lowrank_opt.errors import LowRankError
from lowrank_opt.nn.inspect import inspect_adapter
from lowrank_opt.nn.report import table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0; 1 if a declared bound does not hold; 2 after an error, whose message goes to the
        standard error stream.
    """
    options = _parser().parse_args(arguments)
    try:
        return _inspect(options.path)
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowrank-opt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    inspect = commands.add_parser(
        "inspect", help="print norms, bounds and certificates of a saved adapter"
    )
    inspect.add_argument("path", help="folder of save_adapter, or a PEFT checkpoint of LoRA")
    return parser


def _inspect(path: str) -> int:
    sites = inspect_adapter(path)
    print(table(sites))
    broken = [site.name for site in sites if not site.holds]
    if broken:
        print(f"the declared bound does not hold for: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
