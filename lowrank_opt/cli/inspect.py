"""``lowrank-opt inspect``: norms, bounds and certificates of a saved adapter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from lowrank_opt.cli.parsers import Commands


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "inspect", help="print norms, bounds and certificates of a saved adapter"
    )
    parser.add_argument("path", help="folder of save_adapter, or a PEFT checkpoint of LoRA")
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.nn.reports.inspect import inspect_adapter
    from lowrank_opt.nn.reports.report import table

    sites = inspect_adapter(options.path)
    print(table(sites))
    broken = [site.name for site in sites if not site.holds]
    if broken:
        print(f"the declared bound does not hold for: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0
