"""Laws as tests without a test file: what ``pytest --lowrank-verify`` collects.

The options are in a module of their own, which imports nothing: see `pytest_addoption` there.
"""

from __future__ import annotations

import inspect
import os
import textwrap
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.testing.reports.session import Settings, judge_target
from lowrank_opt.testing.search.check import AnyLaw
from lowrank_opt.testing.search.verdict import BrokenLawError
from lowrank_opt.testing.subjects.expectations import with_expectations
from lowrank_opt.testing.subjects.targets import Target, load_target

if TYPE_CHECKING:
    from _pytest._code.code import ExceptionInfo, TerminalRepr, TracebackStyle


def register(config: pytest.Config) -> None:
    """Load the targets of the command line and have their laws collected.

    If the option is on the command line itself and no file is, the laws are all that runs;
    otherwise, as with the option in a configuration file, they come before the other tests.

    Raises
    ------
    pytest.UsageError
        If a target or an option is wrong, with what to do about it.
    """
    chosen, folder = config.option, config.invocation_params.dir
    try:
        targets = [load_target(text, directory=folder) for text in chosen.lowrank_verify]
        targets = with_expectations(targets, chosen.lowrank_expected_failures)
    except LowRankError as error:
        raise pytest.UsageError(str(error)) from None
    settings = Settings(
        chosen.lowrank_profile,
        getattr(torch, chosen.lowrank_dtype),
        chosen.lowrank_device,
        chosen.lowrank_seed,
    )
    config.pluginmanager.register(LawsAsTests(targets, settings), "lowrank-verify-laws")
    asked = any(str(a).startswith("--lowrank-verify") for a in config.invocation_params.args)
    if asked and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


class LawsAsTests:
    """The plug-in that adds the laws to what pytest collects.

    Parameters
    ----------
    targets : list of Target
    settings : Settings
    """

    def __init__(self, targets: list[Target], settings: Settings) -> None:
        self._targets, self._settings = targets, settings

    # First, so that -k and other selections see these tests too.
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Put one test for each law of each target before the others."""
        collectors = [self._collector(session, target) for target in self._targets]
        # Through pytest's own collection, which counts and reports.
        items[:0] = [item for collector in collectors for item in session.genitems(collector)]

    def _collector(self, session: pytest.Session, target: Target) -> TargetCollector:
        collector = TargetCollector.from_parent(session, name=target.name, nodeid=target.name)
        collector.target, collector.settings = target, self._settings
        return collector


class TargetCollector(pytest.Collector):
    """The laws of one target.

    Attributes
    ----------
    target : Target
    settings : Settings
    """

    target: Target
    settings: Settings

    def collect(self) -> Iterator[pytest.Item]:
        for law in self.target.laws:
            item = LawItem.from_parent(self, name=law.name)
            item.target, item.law, item.settings = self.target, law, self.settings
            yield item


class LawItem(pytest.Item):
    """One law of one target.

    Attributes
    ----------
    target : Target
    law : Law
    settings : Settings
    """

    target: Target
    law: AnyLaw
    settings: Settings

    def runtest(self) -> None:
        """Judge the target by the law."""
        # Overflow at hostile parameters warns; under -W error that would break laws.
        with warnings.catch_warnings(action="ignore"):
            result = judge_target(self.target, self.law, self.settings)
        self.user_properties += [("seed", result.seed), ("examples", result.examples)]
        if result.status == "skipped":
            pytest.skip(result.message)
        if result.status == "expected_failure":
            pytest.xfail(result.message)
        if result.status == "failed":
            raise BrokenLawError(result.check, result.message, result.case, result.code)

    def repr_failure(
        self, excinfo: ExceptionInfo[BaseException], style: TracebackStyle | None = None
    ) -> str | TerminalRepr:
        """Return the report of a broken law instead of a traceback."""
        error = excinfo.value
        if not isinstance(error, BrokenLawError):
            return super().repr_failure(excinfo, style)
        lines = [
            error.found,
            f"  law: {self.law.statement}",
            f"  again: the same command with --lowrank-seed {self.settings.seed}",
            "  smallest counter-example:",
            "",
        ]
        return "\n".join(lines) + f"\n{textwrap.indent(error.code, '    ')}"

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Return where the target is defined, and what is asked of it."""
        path, line = _place(self.target)
        return path or self.path, line, f"{self.target.name}: {self.law.name}"


def _place(target: Target) -> tuple[Path | None, int | None]:
    """Return the file and the line, from 0, at which a target is defined."""
    made = target.make.func if isinstance(target.make, partial) else target.make
    try:
        file, (_, line) = inspect.getsourcefile(made), inspect.getsourcelines(made)
    except (OSError, TypeError):
        return None, None
    return (Path(file) if file else None), max(line - 1, 0)
