"""Laws as tests without a test file: what ``pytest --lowrank-verify`` collects.

The options are in a module of their own, which imports nothing: see `pytest_addoption` there.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lowrank_opt.errors import LowRankError
from lowrank_opt.testing.search.check import AnyLaw, judged, without_cause
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.verdict import BrokenLawError, CheckResult
from lowrank_opt.testing.subjects.expectations import with_expectations
from lowrank_opt.testing.subjects.library import library
from lowrank_opt.testing.subjects.targets import Target, load_target

# The property of a test's report in which `lowrank-opt verify` finds the verdict.
_VERDICT = "lowrank-verdict"

if TYPE_CHECKING:
    from _pytest._code.code import ExceptionInfo, TerminalRepr, TracebackStyle


@dataclass(frozen=True)
class Settings:
    """How a run tries.

    Parameters
    ----------
    profile : {"quick", "standard", "thorough"}
    dtype : torch.dtype
    device : str
    seed : int
    jobs : int
        Number of processes.
    """

    profile: ProfileName = "standard"
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    seed: int = 0
    jobs: int = 1


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
        targets = library() if chosen.lowrank_library else []
        targets += [
            load_target(
                text,
                directory=folder,
                kind=chosen.lowrank_kind,
                weight=chosen.lowrank_weight,
                feasible_set=chosen.lowrank_feasible_set,
            )
            for text in chosen.lowrank_verify
        ]
        targets = with_expectations(targets, chosen.lowrank_expected_failures)
    except LowRankError as error:
        raise pytest.UsageError(str(error)) from None
    if hasattr(config, "workerinput"):
        # One of several processes: more threads than cores cost time, and change digits.
        torch.set_num_threads(1)
    settings = Settings(
        chosen.lowrank_profile,
        getattr(torch, chosen.lowrank_dtype),
        chosen.lowrank_device,
        chosen.lowrank_seed,
    )
    config.pluginmanager.register(LawsAsTests(targets, settings), "lowrank-verify-laws")
    words = ("--lowrank-verify", "--lowrank-library")
    asked = any(str(a).startswith(words) for a in config.invocation_params.args)
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
        collectors = [self._collector(session, k, x) for k, x in enumerate(self._targets)]
        # Through pytest's own collection, which counts and reports.
        items[:0] = [item for collector in collectors for item in session.genitems(collector)]

    def _collector(self, session: pytest.Session, index: int, target: Target) -> TargetCollector:
        collector = TargetCollector.from_parent(session, name=target.name, nodeid=target.name)
        collector.target, collector.settings, collector.index = target, self._settings, index
        collector.results = []
        return collector


class TargetCollector(pytest.Collector):
    """The laws of one target.

    Attributes
    ----------
    target : Target
    settings : Settings
    index : int
        Position among the targets.
    results : list of CheckResult
        The verdicts so far, in this process.
    """

    target: Target
    settings: Settings
    index: int
    results: list[CheckResult]

    def collect(self) -> Iterator[pytest.Item]:
        for law in self.target.laws:
            item = LawItem.from_parent(self, name=law.name)
            item.target, item.law, item.settings = self.target, law, self.settings
            item.collector = self
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
    collector: TargetCollector

    def runtest(self) -> None:
        """Judge the target by the law."""
        # Overflow at hostile parameters warns; under -W error that would break laws.
        with warnings.catch_warnings(action="ignore"):
            result = self._judged()
        self.collector.results.append(result)
        self.user_properties.extend((("seed", result.seed), ("examples", result.examples)))
        if self.config.option.lowrank_verdicts:
            self.user_properties.append((_VERDICT, _packed(self.collector.index, result)))
        if result.status == "skipped":
            pytest.skip(result.message)
        if result.status == "expected_failure":
            pytest.xfail(result.message)
        if result.status == "failed":
            raise BrokenLawError(result.check, result.message, result.case, result.code)

    def _judged(self) -> CheckResult:
        settings = self.settings
        result = self.law.verdict(
            self.target.make,
            profile=settings.profile,
            dtype=settings.dtype,
            device=settings.device,
            seed=settings.seed,
        )
        needs = {law.name: law.needs for law in self.target.laws}
        return without_cause(judged(result, self.target.known), self.collector.results, needs)

    def repr_failure(
        self, excinfo: ExceptionInfo[BaseException], style: TracebackStyle | None = None
    ) -> str | TerminalRepr:
        """Return the report of a broken law instead of a traceback."""
        error = excinfo.value
        if isinstance(error, LowRankError):
            return str(error)
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
    if not isinstance(made, type | FunctionType):
        return None, None
    try:
        file, (_, line) = inspect.getsourcefile(made), inspect.getsourcelines(made)
    except (OSError, TypeError):
        return None, None
    return (Path(file) if file else None), max(line - 1, 0)


def _packed(index: int, result: CheckResult) -> str:
    """Return a verdict as text that travels between processes; the case is in its program."""
    return json.dumps({"index": index, **asdict(replace(result, case=None))})


def result_of(report: pytest.TestReport) -> tuple[int, CheckResult | None]:
    """Return the position of a target and the verdict that a test's report carries, if any."""
    for name, value in report.user_properties:
        if name == _VERDICT:
            fields: dict[str, Any] = json.loads(str(value))
            return int(fields.pop("index")), CheckResult(**fields)
    return 0, None
