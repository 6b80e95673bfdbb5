"""The library's speed by revision, in units of a fixed piece of work: a record and a page.

``python -m experiments.benchmarks HEAD v1.0.0rc1`` checks each revision out into a temporary
folder, times it there in a process of its own, adds it to ``docs/results/benchmarks.json`` and
writes the page anew. ``--profile smoke`` is over in seconds, and without a revision the files at
hand are timed. Needs git and a checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.benchmark_cases import CASES
from experiments.records import Json, environment, prepare_folder, write_record
from experiments.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
# Turns, and CPU seconds of a turn.
PROFILES = {"smoke": (2, 0.01), "full": (9, 0.15)}
PAGE = """# Speed by revision

Made by `python -m experiments.benchmarks REVISION ...`. Each figure is the CPU time of one call on
one thread, divided by that of a fixed piece of NumPy and Python that runs before and after every
turn: the median of {turns} turns, with the quartiles below it. Less is faster; a dash is what a
revision could not do yet. Maps are 1024 x 768 of rank 16; the completion is of 20,000 entries.

{table}

Measured with Python {python}, torch {torch}, on {processor}. Revisions that were measured on other
machines, or beside other work, differ by more than their quartiles say: compare within one run.
"""


@dataclass(frozen=True)
class Run:
    """What was found at a revision: quartiles in yardsticks, or None."""

    revision: str
    committed: str
    turns: int
    found: dict[str, list[float] | None]
    environment: dict[str, Json]


def git(*words: str) -> str:
    """Return what git prints in this repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checked_out(revision: str) -> Generator[Path]:
    """Give the files of a revision in a folder for a while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "library"
        git("worktree", "add", "--detach", "--quiet", str(folder), revision)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def timed(folder: Path, turns: int, seconds: float) -> dict[str, list[float] | None]:
    """Return the figures of the library in a folder."""
    script = Path(__file__).with_name("benchmark_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), str(turns), str(seconds)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    if not Path(answer["file"]).is_relative_to(folder):
        raise SystemExit(f"error: timed {answer['file']}, which is not in {folder}")
    return answer["found"]


def page(runs: Sequence[Run]) -> str:
    """Return the page of runs, one column for each revision."""
    header = ["", *(f"`{run.revision}`<br>{run.committed[:10]}" for run in runs)]
    rows = [[name, *(_cell(run.found.get(name)) for run in runs)] for name in CASES]
    known = environment()
    return PAGE.format(
        table=markdown_table(header, rows),
        turns=max(run.turns for run in runs),
        python=known["python"],
        torch=torch.__version__,
        processor=known["processor"],
    )


def _cell(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return "-"
    low, middle, high = (f"{x:.3g}" for x in quartiles)
    return f"{middle}<br>{low} .. {high}"


def run_of(revision: str, profile: str) -> Run:
    """Return what is found at a revision, or with the files at hand."""
    turns, seconds = PROFILES[profile]
    commit = revision or "HEAD"
    if revision:
        with checked_out(revision) as files:
            found = timed(files, turns, seconds)
    else:
        found = timed(ROOT, turns, seconds)
    name = git("rev-parse", "--short", commit) + ("" if revision else " + changes")
    return Run(name, git("show", "-s", "--format=%cI", commit), turns, found, environment())


def main(arguments: Sequence[str] | None = None) -> int:
    """Time revisions, add them to the record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revisions", nargs="*", help="what git knows; the files at hand by default")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args(arguments)
    path = prepare_folder(options.out) / "benchmarks.json"
    old = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []
    runs = [Run(**run) for run in old]
    for revision in options.revisions or [""]:
        print(f"timing {revision or 'the files at hand'}", flush=True)
        new = run_of(revision, options.profile)
        runs = [*(run for run in runs if run.revision != new.revision), new]
        runs.sort(key=lambda run: run.committed)
        write_record(path, runs=[asdict(run) for run in runs])
        path.with_suffix(".md").write_text(page(runs), encoding="utf-8")
    print(page(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
