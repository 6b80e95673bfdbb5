"""``lowrank-opt inspect``: norms, bounds and certificates of a saved adapter."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from lowrank_opt.cli.parsers import Commands
    from lowrank_opt.nn.reports.report import SiteReport


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "inspect", help="print norms, bounds and certificates of a saved adapter"
    )
    parser.add_argument("path", help="folder of save_adapter, or a PEFT checkpoint")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each adapted layer"
    )
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> int:
    from lowrank_opt.nn.reports.inspect import inspect_adapter
    from lowrank_opt.nn.reports.report import table

    sites = inspect_adapter(options.path)
    if options.json:
        for site in sites:
            print(json.dumps(_facts(site), ensure_ascii=False))
    else:
        print(table(sites))
    broken = [site.name for site in sites if site.holds is False]
    if broken:
        print(f"the declared bound does not hold for: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def _facts(site: SiteReport) -> dict[str, object]:
    """Return what is known of a site; JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in asdict(site).items()
    }
