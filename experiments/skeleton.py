"""The one way in which experiments start, run, go on after an end, and write what they found.

``python -m experiments.<name> [--profile smoke|cpu|gpu] [--out FOLDER] [--resume]``: independent
runs side by side, one thread each, with progress; finished ones are kept in a file until the record
is written, so that ``--resume`` goes on where an interrupted call ended.
"""

import argparse
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from experiments.records import Json, prepare_folder, revision, write_record
from lowrank_opt.errors import DataError, LowRankError

T = TypeVar("T")
AddOptions = Callable[[argparse.ArgumentParser], None]
INTERRUPTED = 130


class Main(Protocol):
    """The main function of an experiment."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Take arguments, those of the process by default, and return a status."""
        ...


def _nothing() -> None:
    """Prepare nothing."""


@dataclass
class Session:
    """One call of an experiment.

    Parameters
    ----------
    name : str
        Of the experiment.
    options : Namespace
        `out`, `profile`, `resume`, and what the experiment adds.
    ready : callable
        Run once in each process, before its first run.
    """

    name: str
    options: argparse.Namespace
    ready: Callable[[], None] = _nothing
    cpu_seconds: float = 0.0
    _kept: dict[str, tuple[Any, float]] = field(default_factory=dict[str, tuple[Any, float]])

    def __post_init__(self) -> None:
        self._kept = self._read() if self.options.resume else {}
        if not self.options.resume:
            self._journal.unlink(missing_ok=True)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.options.out

    @property
    def smoke(self) -> bool:
        """Whether the run shall only show that everything works."""
        return self.options.profile == "smoke"

    def run(self, calls: Sequence[partial[T]], description: str) -> list[T]:
        """Return the results of `calls`, in order, those that were kept without running again.

        Calls are partial applications of functions of modules, to arguments that their text tells
        apart. A smoke run stays in this process: starting others costs more than the runs. So does
        one for a GPU: each other process would hold a model there.
        """
        # What only shares the parts of an experiment needs neither.
        from joblib import Parallel, delayed
        from tqdm import tqdm

        alone = self.options.profile in ("smoke", "gpu")
        missing = [call for call in calls if _key(call) not in self._kept]
        processes = Parallel(
            1 if alone else -1,
            return_as="generator",
            initializer=_initialize,
            initargs=(self.ready,),
        )
        found = processes(delayed(_timed)(call) for call in missing)
        quiet = getattr(self.options, "quiet", False)
        if alone and missing:
            self.ready()
        progress = tqdm(found, description, len(missing), unit="run", disable=quiet)
        for call, result in zip(missing, progress, strict=True):
            self._keep(_key(call), result)
        results = [self._kept[_key(call)] for call in calls]
        self.cpu_seconds += sum(seconds for _, seconds in results)
        return [result for result, _ in results]

    def write(self, file: str, **record: Json) -> None:
        """Write a record, with the profile and the CPU seconds of all runs."""
        known = {"profile": self.options.profile, "cpu_seconds": self.cpu_seconds}
        write_record(self.folder / file, **known, **record)

    def close(self, *, finished: bool) -> None:
        """End the processes; what was kept of a finished experiment is in its record."""
        if not self.smoke and "joblib" in sys.modules:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(kill_workers=True)
        if finished:
            self._journal.unlink(missing_ok=True)

    @property
    def _journal(self) -> Path:
        return self.folder / f".{self.name}.runs"

    def _stamp(self) -> tuple[str, str]:
        return revision(), self.options.profile

    def _keep(self, key: str, result: tuple[Any, float]) -> None:
        new = not self._kept
        self._kept[key] = result
        with self._journal.open("ab") as file:
            if new:
                pickle.dump(self._stamp(), file)
            pickle.dump((key, result), file)

    def _read(self) -> dict[str, tuple[Any, float]]:
        kept: dict[str, tuple[Any, float]] = {}
        if not self._journal.exists():
            return kept
        with self._journal.open("rb") as file:
            stamp = pickle.load(file)
            if stamp != self._stamp():
                raise DataError(
                    "--resume needs runs of the same source and profile; got those of "
                    f"{' and '.join(stamp)} in {self._journal}: start anew without --resume"
                )
            while True:
                try:
                    key, result = pickle.load(file)
                except (EOFError, pickle.UnpicklingError):  # the last one may be half written
                    return kept
                kept[key] = result


def experiment(
    body: Callable[[Session], int | None],
    description: str | None,
    *,
    ready: Callable[[], None] = _nothing,
    options: AddOptions | None = None,
    profiles: Sequence[str] = ("smoke", "cpu"),
    folder: str = "results",
) -> Main:
    """Return the main function of an experiment: arguments in, status out.

    Parameters
    ----------
    body : callable
        What is done in a session; it may return a status.
    description : str, optional
        For ``--help``: the docstring of the module.
    ready : callable
        Run once in each process before its first run.
    options : callable, optional
        Adds arguments of the experiment's own.
    profiles : sequence of str
        Those that it has; the second one is the default.
    folder : str
        Of the results, if none is given.
    """
    name = Path(sys.modules[body.__module__].__file__ or "experiment").stem

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(
            prog=f"python -m experiments.{name}", description=description
        )
        parser.add_argument("--profile", choices=profiles, default=profiles[1], help="how much")
        parser.add_argument("--out", type=Path, default=Path(folder), help="of the results")
        parser.add_argument("--resume", action="store_true", help="keep runs that are finished")
        if options is not None:
            options(parser)
        return _started(name, parser.parse_args(arguments), body, ready)

    return main


def _started(
    name: str,
    chosen: argparse.Namespace,
    body: Callable[[Session], int | None],
    ready: Callable[[], None],
) -> int:
    try:
        prepare_folder(chosen.out)
        session = Session(name, chosen, ready)
        finished = False
        try:
            status = body(session)
            finished = True
        finally:
            session.close(finished=finished)
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no record was written; --resume goes on from here", file=sys.stderr)
        return INTERRUPTED
    return status or 0


def _key(call: partial[Any]) -> str:
    keywords = sorted(call.keywords.items())
    return f"{call.func.__qualname__} {call.args!r} {keywords!r}"


def _timed(call: partial[T]) -> tuple[T, float]:
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


def _initialize(ready: Callable[[], None]) -> None:
    # Two runs side by side use two cores better than two threads inside one run.
    torch.set_num_threads(1)
    ready()
