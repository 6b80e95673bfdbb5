"""Run mutants: one process imports and collects everything once, and forks for each of them.

``python -m experiments.mutation.server PLAN RESULTS`` is what `experiments.mutants` starts: it must
not have imported the package, whose constants, defaults and decorators only a fresh import can
change. A child that runs a mutant of a function's body has the functions that are in use given the
mutated code; one that runs another mutant imports the package anew, the mutated file from memory.
A test is run only if it calls the mutated function, the quick and the unlike ones first; the first
failure ends the child. Limits are in seconds of the processor, not of the clock.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypedDict

import pytest

from experiments.mutation.operators import Mutant

ROOT = Path(__file__).resolve().parents[2]
# Without rewritten assertions: pytest rewrites the package too, as that of a plug-in, and would
# load its files itself instead of the mutated ones.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--assert=plain")
SLOWER, SPARE = 4, 5
_CACHED = type(functools.cache(len))


class Ran(TypedDict):
    """What is known of a test: its time, and the functions of the package that it calls."""

    test: str
    seconds: float
    passed: bool
    functions: list[str]


class Group(TypedDict):
    """Mutants, and the files and folders of the tests that they are run against."""

    tests: list[str]
    everywhere: bool
    mutants: list[dict[str, object]]


def key_of(path: str, function: str) -> str:
    """Return what names a function of a file, wherever in it."""
    return f"{path}:{function}"


def files_of(tests: Sequence[str]) -> list[Path]:
    """Return the files of tests and of examples in some folders and files."""
    places = [ROOT / test for test in tests]
    found = (
        [place] if place.is_file() else sorted(place.rglob(f"{_kind(place)}.py"))
        for place in places
    )
    return list(dict.fromkeys(file for files in found for file in files))


def _kind(folder: Path) -> str:
    return "test_*" if folder.is_relative_to(ROOT / "tests") else "*"


def selected(mutant: Mutant, known: Sequence[Ran], seconds: float) -> tuple[list[str], float]:
    """Return the tests that a mutant is run against, and their time.

    Tests of one function with other parameters come after those of other functions, the quicker
    ones first, until their time is spent.
    """
    wanted = key_of(mutant.path, mutant.function)
    inside = f"{mutant.path}:"
    calls: Callable[[str], bool] = (
        wanted.__eq__ if mutant.function else lambda name: name.startswith(inside)
    )
    times: dict[str, list[Ran]] = {}
    for ran in known:
        if ran["passed"] and any(map(calls, ran["functions"])):
            times.setdefault(ran["test"].partition("[")[0], []).append(ran)
    ordered = sorted(
        (turn, ran["seconds"], ran["test"])
        for same in times.values()
        for turn, ran in enumerate(sorted(same, key=lambda ran: ran["seconds"]))
    )
    found, spent = list[str](), 0.0
    for _, cost, test in ordered:
        if spent + cost <= seconds or not found:
            found.append(test)
            spent += cost
    return found, spent


class Traced:
    """The functions of some files that are called while it is active."""

    def __init__(self, files: Sequence[str]) -> None:
        self._keys: dict[CodeType, str | None] = {}
        self._files = {str(ROOT / name): name for name in files}
        self.called: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note one call, and follow no line of it."""
        code = frame.f_code
        if code not in self._keys:
            name = self._files.get(code.co_filename)
            self._keys[code] = name and key_of(name, code.co_qualname)
        if found := self._keys[code]:
            self.called.add(found)

    @contextlib.contextmanager
    def active(self) -> Generator[set[str]]:
        """Collect what is called inside."""
        self.called = set()
        sys.settrace(self)
        try:
            yield self.called
        finally:
            sys.settrace(None)


class Loop:
    """What pytest does with the tests it has collected: `work` on them, and nothing else."""

    def __init__(self, work: Callable[["Loop"], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self.failed = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running all tests."""
        self.items = {item.nodeid: item for item in session.items}
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember what could not be imported."""
        if report.failed:
            self.failed = self.failed or f"import of {report.nodeid}"

    def run(self, test: str) -> str:
        """Run one test; return which one failed, or nothing."""
        item = self.items[test]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failed


def collect_and(work: Callable[[Loop], None], tests: Sequence[str]) -> str:
    """Collect tests and do `work` with them; return what could not be imported."""
    loop = Loop(work)
    pytest.main([*OPTIONS, *tests], plugins=[loop])
    return loop.failed


def forked(work: Callable[[], None], seconds: float | None = None) -> tuple[int, float]:
    """Do `work` in a child; return its exit status, negative for a signal, and its time."""
    child = os.fork()
    if child == 0:
        try:
            _quiet(seconds)
            work()
        finally:
            os._exit(3)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def _quiet(seconds: float | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    if seconds is not None:
        limit = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def measure(loop: Loop, files: Sequence[str], outs: dict[str, Path]) -> None:
    """Run every test once, unchanged, and write what it costs and calls to the file of its file."""
    traced = Traced(files)
    by_file: dict[str, list[str]] = {name: [] for name in outs}
    for test in loop.items:
        by_file[test.partition("::")[0]].append(test)
    for name, tests in by_file.items():
        _measured(loop, traced, tests, part := outs[name].with_suffix(".part"))
        part.rename(outs[name])
    os._exit(0)


def _measured(loop: Loop, traced: Traced, tests: Sequence[str], out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for test in tests:
            loop.failed, start = "", time.process_time()
            with traced.active() as called:
                loop.run(test)
            spent = time.process_time() - start
            ran = Ran(
                test=test, seconds=round(spent, 4), passed=not loop.failed,
                functions=sorted(called),
            )  # fmt: skip
            file.write(json.dumps(ran) + "\n")


class InUse(NamedTuple):
    """The functions of some files that exist, by file, name and line, and all that is cached."""

    functions: dict[tuple[str, str, int], list[FunctionType]]
    caches: list[Any]


def functions_in_use(files: set[str]) -> InUse:
    """Return the functions that exist, and the caches that mutated ones must not meet."""
    gc.unfreeze()
    found = InUse({}, [])
    for item in gc.get_objects():
        if type(item) is _CACHED:
            # Others keep in theirs what is not computed again: torch's compiler its tables.
            if str(item.__module__).startswith("lowrank_opt"):
                found.caches.append(item)
        elif type(item) is FunctionType and item.__code__.co_filename in files:
            code = item.__code__
            name = (code.co_filename, code.co_qualname, code.co_firstlineno)
            found.functions.setdefault(name, []).append(item)
    gc.freeze()
    return found


def replace(mutant: Mutant, source: str, used: InUse) -> None:
    """Give the functions of a file the code of the mutated one."""
    path = str(ROOT / mutant.path)
    pending = [compile(mutant.applied(source), path, "exec")]
    while pending:
        code = pending.pop()
        pending += [x for x in code.co_consts if isinstance(x, CodeType)]
        for function in used.functions.get((path, code.co_qualname, code.co_firstlineno), ()):
            # A closure that lives keeps its code where its variables are not those of the new one.
            if function.__code__.co_freevars == code.co_freevars:
                function.__code__ = code
    for cache in used.caches:
        cache.cache_clear()


def imported_mutated(mutant: Mutant, source: str) -> None:
    """Have the next import of the mutant's file give the mutated module."""
    wanted, usual = str(ROOT / mutant.path), importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
        if self.get_filename(fullname) == wanted:
            return compile(mutant.applied(source), wanted, "exec")
        return usual(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code


class Runner:
    """Runs the mutants of one plan."""

    def __init__(self, plan: dict[str, object], results: Path) -> None:
        self.groups: list[Group] = plan["groups"]  # pyright: ignore[reportAttributeAccessIssue]
        self.seconds = float(plan["seconds"])  # pyright: ignore[reportArgumentType]
        self.folder = Path(str(plan["measured"]))
        self.results, self.everywhere = results, False
        self.sources = {
            str(m["path"]): (ROOT / str(m["path"])).read_text(encoding="utf-8")
            for group in self.groups
            for m in group["mutants"]
        }

    def run(self) -> None:
        """Run all groups: first what their tests cost, then their mutants."""
        for group in self.groups:
            self.everywhere = group["everywhere"]
            known = self._known(files_of(group["tests"]))
            mutants = [Mutant(**m) for m in group["mutants"]]  # pyright: ignore[reportArgumentType]
            inside = [m for m in mutants if m.function]
            work = functools.partial(self._inside, known=known, mutants=inside)
            chosen = [test for m in inside for test in selected(m, known, self.seconds)[0]]
            # Nothing else is collected.
            files = list(dict.fromkeys(test.partition("::")[0] for test in chosen))
            if inside:
                forked(functools.partial(_collected, work, files))
            for mutant in mutants:
                if not mutant.function:
                    self._fresh(mutant, known)

    def _known(self, tests: Sequence[Path]) -> list[Ran]:
        """Return what files of tests cost and call; each is measured once, and if it changes."""
        self.folder.mkdir(exist_ok=True)
        outs = {str(test.relative_to(ROOT)): self.folder / _named(test) for test in tests}
        missing = {name: out for name, out in outs.items() if not out.exists()}
        files = [str(p.relative_to(ROOT)) for p in (ROOT / "lowrank_opt").rglob("*.py")]
        work = functools.partial(measure, files=files, outs=missing)
        if missing:
            forked(functools.partial(_collected, work, list(missing)))
        texts = [out.read_text(encoding="utf-8") for out in outs.values() if out.exists()]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def _inside(self, loop: Loop, known: Sequence[Ran], mutants: Sequence[Mutant]) -> None:
        used = functions_in_use({str(ROOT / m.path) for m in mutants})
        here = [ran for ran in known if ran["test"] in loop.items]
        for mutant in mutants:
            tests, cost = selected(mutant, here, self.seconds)

            def work(out: int, m: Mutant = mutant, tests: Sequence[str] = tests) -> None:
                # For files that are only imported when they are needed.
                imported_mutated(m, self.sources[m.path])
                replace(m, self.sources[m.path], used)
                _tried(loop, tests, out)

            self._note(mutant, tests, cost, work)
        os._exit(0)

    def _fresh(self, mutant: Mutant, known: Sequence[Ran]) -> None:
        tests, cost = selected(mutant, known, self.seconds)

        def work(out: int) -> None:
            imported_mutated(mutant, self.sources[mutant.path])
            failed = collect_and(lambda loop: _tried(loop, tests, out), tests)
            os.write(out, (failed or "collection").encode())
            os._exit(1)

        self._note(mutant, tests, cost + 10, work)

    def _note(
        self, mutant: Mutant, tests: Sequence[str], cost: float, work: Callable[[int], None]
    ) -> None:
        read, write = os.pipe()
        status, used = (0, 0.0)
        if tests:
            limit = SLOWER * cost + SPARE
            status, used = forked(functools.partial(work, write), limit)
        os.close(write)
        killer = os.read(read, 4096).decode(errors="replace")
        os.close(read)
        outcome = {0: "survived", 1: "killed"}.get(status, "stopped")
        line = {
            "id": mutant.id, "outcome": outcome if tests else "not run", "by": killer,
            "tests": len(tests), "seconds": round(used, 2), "everywhere": self.everywhere,
            "mutant": vars(mutant),
        }  # fmt: skip
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _named(test: Path) -> str:
    digest = hashlib.sha256(test.read_bytes()).hexdigest()[:12]
    return f"{test.relative_to(ROOT)}-{digest}.jsonl".replace("/", "-")


def _collected(work: Callable[[Loop], None], tests: Sequence[str]) -> None:
    collect_and(work, tests)
    os._exit(1)


def _tried(loop: Loop, tests: Sequence[str], out: int) -> None:
    """Run tests until one fails."""
    if loop.failed:
        os.write(out, loop.failed.encode())
        os._exit(1)
    for test in tests:
        if test in loop.items and loop.run(test):
            os.write(out, test.encode())
            os._exit(1)
    os._exit(0)


def _imported() -> list[ModuleType]:
    """Import what takes long and is not of the package."""
    import hypothesis
    import scipy.sparse.linalg
    import torch.optim

    torch.set_num_threads(1)
    return [hypothesis, scipy.sparse.linalg, torch.optim, importlib.import_module("torch._dynamo")]


if __name__ == "__main__":
    os.chdir(ROOT)
    _imported()
    gc.freeze()
    Runner(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])).run()
