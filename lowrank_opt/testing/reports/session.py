"""One run of the laws over targets: settings in, verdicts out, interruptible, on several cores."""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import hypothesis
import numpy as np
import torch

from lowrank_opt import __version__
from lowrank_opt.testing.search.check import AnyLaw, judged, without_cause
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.verdict import CheckResult, Status
from lowrank_opt.testing.subjects.library import library_target
from lowrank_opt.testing.subjects.targets import Target, load_target


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

    def started(self, target: Target, law: AnyLaw) -> None:
        """Hear that a law is about to be tried."""

    def finished(self, target: Target, result: CheckResult) -> None:
        """Hear the verdict of a law."""


def run(targets: Sequence[Target], settings: Settings, progress: Progress) -> Session:
    """Try every law on every target and return the verdicts; Ctrl-C returns those so far.

    Raises
    ------
    ShapeError
        If a factory refuses every shape that is tried.
    """
    session = Session(settings, [Verdicts(target) for target in targets], time.time())
    start = time.perf_counter()
    try:
        for index, result in _results(targets, settings, progress):
            before = session.verdicts[index].results
            needs = {law.name: law.needs for law in targets[index].laws}
            result = without_cause(result, before, needs)
            before.append(result)
            progress.finished(targets[index], result)
    except KeyboardInterrupt:
        session.interrupted = True
    session.seconds = time.perf_counter() - start
    return session


def environment(settings: Settings) -> dict[str, str]:
    """Return the versions and the machine that verdicts belong to."""
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "lowrank_opt": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hypothesis": hypothesis.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": f"{settings.device} ({name})",
    }


def _results(
    targets: Sequence[Target], settings: Settings, progress: Progress
) -> Iterator[tuple[int, CheckResult]]:
    if settings.jobs > 1:
        yield from _in_processes(targets, settings, progress)
        return
    for index, target in enumerate(targets):
        for law in target.laws:
            progress.started(target, law)
            yield index, judge_target(target, law, settings)


def judge_target(target: Target, law: AnyLaw, settings: Settings) -> CheckResult:
    """Return the verdict of one law on one target."""
    result = law.verdict(
        target.make,
        profile=settings.profile,
        dtype=settings.dtype,
        device=settings.device,
        seed=settings.seed,
    )
    return judged(result, target.known)


# A factory need not be picklable: processes are told its name and import it themselves.
_Task = tuple[str, bool, dict[str, str], str, Settings]


def _in_processes(
    targets: Sequence[Target], settings: Settings, progress: Progress
) -> Iterator[tuple[int, CheckResult]]:
    folder = str(Path.cwd())
    tasks = [(i, target, law) for i, target in enumerate(targets) for law in target.laws]
    jobs = [(t.name, t.listed, dict(t.known), law.name, settings) for _, t, law in tasks]
    # The spawned interpreters share nothing with this one: a seed means the same in each.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(settings.jobs, len(jobs)), _enter, (folder,)) as pool:
        outcomes = pool.imap(_work, jobs)
        for index, target, law in tasks:
            progress.started(target, law)
            yield index, next(outcomes)


def _enter(folder: str) -> None:
    import os
    import signal

    # The parent hears Ctrl-C and ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    torch.set_num_threads(1)


def _work(task: _Task) -> CheckResult:
    name, listed, known, law, settings = task
    found = library_target(name) if listed else load_target(name)
    chosen = next(x for x in found.laws if x.name == law)
    return judge_target(replace(found, known=known), chosen, settings)
