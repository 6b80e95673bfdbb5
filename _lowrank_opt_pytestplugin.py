"""Options of pytest for the laws of parameterizations: ``pytest --lowrank-verify module:Class``.

Pytest imports this module in every run, so it lies beside the package and not inside: importing
anything of `lowrank_opt` takes torch with it. All else is imported when the option is used, from
`lowrank_opt.testing.reports.pytest_plugin`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    group = parser.getgroup("lowrank_opt", "laws of low-rank parameterizations")
    group.addoption(
        "--lowrank-verify", action="append", default=[], metavar="TARGET",
        help="one test for each law, on package.module:Class, file.py:Class or "
        "'package.module:Class(radius=3.0)'; may be given several times",
    )  # fmt: skip
    group.addoption(
        "--lowrank-library",
        action="store_true",
        help="verify every parameterization of lowrank_opt",
    )
    group.addoption(
        "--lowrank-kind",
        choices=("parameterization", "set", "operator", "adapter", "solver", "module"),
        help="what the targets are (default: what they look like)",
    )
    group.addoption(
        "--lowrank-weight", metavar="NAME",
        help="of a module of another package: the weight that is in the set",
    )  # fmt: skip
    group.addoption(
        "--lowrank-feasible-set", metavar="TARGET",
        help="the set of a module's weight or of a solver's results",
    )  # fmt: skip
    group.addoption("--lowrank-verdicts", action="store_true", help=argparse.SUPPRESS)
    group.addoption(
        "--lowrank-profile", choices=("quick", "standard", "thorough"), default="standard",
        help="how hard to try (default: standard)",
    )  # fmt: skip
    group.addoption(
        "--lowrank-dtype", choices=("float64", "float32", "float16", "bfloat16"),
        default="float64", help="default: float64",
    )  # fmt: skip
    group.addoption("--lowrank-device", default="cpu", help="default: cpu")
    group.addoption(
        "--lowrank-seed", type=int, default=0, metavar="N", help="chooses the examples (default: 0)"
    )
    group.addoption(
        "--lowrank-expected-failures", action="append", default=[], metavar="LAW=REASON",
        help="a law that is known not to hold, or a TOML file of such; may be given several times",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Collect laws as tests if that is asked for."""
    if config.getoption("lowrank_verify") or config.getoption("lowrank_library"):
        from lowrank_opt.testing.reports.pytest_plugin import register

        register(config)
