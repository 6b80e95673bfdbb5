"""``lowrank-opt inspect``: norms, bounds and certificates of a saved adapter."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from lowrank_opt.cli.streams import output, say

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

    out, sites = output(), inspect_adapter(options.path)
    if options.json:
        for site in sites:
            print(json.dumps(_facts(site), ensure_ascii=False), file=out)
    else:
        print(table(sites), file=out)
    broken = [site.name for site in sites if site.holds is False]
    if broken:
        say(f"the declared bound does not hold for: {', '.join(broken)}")
    return 1 if broken else 0


def _facts(site: SiteReport) -> dict[str, object]:
    """Return what is known of a site; JSON has no NaN and no infinity."""
    from dataclasses import asdict

    return {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in asdict(site).items()
    }
