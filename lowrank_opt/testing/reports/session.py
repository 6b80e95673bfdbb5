"""One run of the laws over targets, by pytest: settings in, verdicts out, on several cores."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import hypothesis
import numpy as np
import pytest
import torch

from lowrank_opt.errors import ShapeError
from lowrank_opt.testing.reports.pytest_plugin import LawsAsTests, Settings, result_of
from lowrank_opt.testing.search.verdict import CheckResult, Status
from lowrank_opt.testing.subjects.targets import Target

# Pytest is a machine here: no files of the user's are read, and nothing is printed or remembered.
_MACHINE = (
    "--noconftest",
    "--capture=no",
    "--override-ini=addopts=",
    "--override-ini=junit_suite_name=lowrank-opt verify",
    *("-c", os.devnull),
    *("-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:logging"),
    *("-p", "no:warnings", "-p", "no:hypothesispytest", "-p", "no:randomly"),
    # With torch imported, its six garbage collections at the end take longer than a quick law.
    *("-p", "no:unraisableexception", "-p", "no:threadexception"),
)


@dataclass
class Verdicts:
    """What the laws say of one target.

    Parameters
    ----------
    target : Target
    results : list of CheckResult
        In the order of the laws; fewer after an interrupt.
    """

    target: Target
    results: list[CheckResult] = field(default_factory=list[CheckResult])

    def count(self, status: Status) -> int:
        """Return the number of laws with a status."""
        return sum(result.status == status for result in self.results)

    @property
    def broken(self) -> list[CheckResult]:
        """The laws that do not hold and were not expected to fail."""
        return [result for result in self.results if result.status == "failed"]

    @property
    def seconds(self) -> float:
        """Time of all laws together."""
        return sum(result.seconds for result in self.results)


@dataclass
class Session:
    """A run and what came of it.

    Parameters
    ----------
    settings : Settings
    verdicts : list of Verdicts
        One for each target that was begun.
    started : float
        Seconds since the epoch.
    seconds : float
        Wall time.
    interrupted : bool
    """

    settings: Settings
    verdicts: list[Verdicts]
    started: float = 0.0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def holds(self) -> bool:
        """Whether every law was tried and holds, or is known not to."""
        return not self.interrupted and not any(v.broken for v in self.verdicts)

    def count(self, status: Status) -> int:
        """Return the number of laws with a status, over all targets."""
        return sum(v.count(status) for v in self.verdicts)


class Progress(Protocol):
    """Who is told how a run goes."""

    def finished(self, target: Target, result: CheckResult) -> None:
        """Hear the verdict of a law."""


class _Listener:
    """The plug-in that collects verdicts, from this process and from others."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self._session, self._progress = session, progress
        self.refusal = ""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Have nothing collected but the laws."""
        config.args = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the verdict that a test carries."""
        if report.when != "call":
            return
        index, result = result_of(report)
        if result is None:
            self.refusal = self.refusal or str(report.longrepr)
            return
        verdicts = self._session.verdicts[index]
        verdicts.results.append(result)
        self._progress.finished(verdicts.target, result)


def run(
    targets: Sequence[Target],
    settings: Settings,
    progress: Progress,
    *,
    words: Sequence[str] = (),
    junit: Path | None = None,
) -> Session:
    """Try every law on every target and return the verdicts; Ctrl-C returns those so far.

    Parameters
    ----------
    targets : sequence of Target
    settings : Settings
    progress : Progress
    words : sequence of str
        Options of the pytest plug-in by which other processes load the same targets; they are
        needed for more than one job.
    junit : Path, optional
        Where pytest writes its report for machines.

    Raises
    ------
    ShapeError
        If a factory refuses every shape that is tried.
    """
    session = Session(settings, [Verdicts(target) for target in targets], time.time())
    listener, start = _Listener(session, progress), time.perf_counter()
    plugins: list[object] = [listener]
    asked = [
        *_plug_in(),
        *_MACHINE,
        "--lowrank-verdicts",
        *(["--junitxml", str(junit)] if junit else []),
    ]
    if settings.jobs > 1:
        # All laws of a target in one process: a law says nothing while one it needs is broken.
        asked += [*words, "-n", str(settings.jobs), "--dist", "loadscope"]
    else:
        plugins.append(LawsAsTests(list(targets), settings))
    with _own_environment():
        code = pytest.main(asked, plugins=plugins)
    session.interrupted = code == pytest.ExitCode.INTERRUPTED
    session.seconds = time.perf_counter() - start
    if listener.refusal:
        raise ShapeError(listener.refusal)
    return session


def _plug_in() -> list[str]:
    """Return the words that load our options where the package is not installed."""
    found = importlib.metadata.entry_points(group="pytest11", name="lowrank_opt")
    return [] if found else ["-p", "_lowrank_opt_pytestplugin"]


@contextmanager
def _own_environment() -> Generator[None]:
    """Keep options of the user's own tests away from this run."""
    names = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def environment(settings: Settings) -> dict[str, str]:
    """Return the versions and the machine that verdicts belong to."""
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "lowrank_opt": importlib.metadata.version("lowrank_opt"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hypothesis": hypothesis.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": f"{settings.device} ({name})",
    }
