"""Do the tests notice? A random sample of small changes of the library, each against its tests.

``python -m experiments.mutants`` changes one operator, constant, condition, keyword or statement of
a file at a time and runs the tests of its package that call the changed function, until one fails;
what none of them notices is run against the tests of the other packages that call it. It writes the
score of each package and file with Wilson's interval, a JSON record, and the diff of every mutant
that no test noticed. ``--resume`` goes on with an interrupted sample, ``--again`` runs survivors of
a finished one against the tests of today; ``--only sets --each 20 --own`` scores the files of one
package by its own tests. An hour of one core, and no part of CI.

mutmut 3 and cosmic-ray were weighed. mutmut switches between copies of each function, which leaves
out decorated ones, properties and static methods, and changes their signatures, which the package
reads; cosmic-ray starts an interpreter for each mutant, six seconds with torch. Neither drops a
check or a statement, and both put half their mutants into arguments that become None.
"""

import argparse
import difflib
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.mutation.operators import Mutant, mutants
from experiments.records import prepare_folder, write_record
from experiments.tables import markdown_table, text_table

ROOT = Path(__file__).resolve().parents[1]
UNIT = "tests/unit"
PROOFS = [f"{UNIT}/parameterizations/test_{name}.py" for name in ("proofs", "roots")]
CERTIFICATES = [
    f"{UNIT}/completion/test_{name}.py"
    for name in (
        "margins", "convex_problem", "spectral_bounds", "at_rank", "bounds_are_proofs",
        "completion_certificate",
    )
]  # fmt: skip
ADAPTERS = [
    f"tests/property/test_{name}.py" for name in ("adapters", "adapter_machine", "damaged_folders")
]
TURNS = "tests/property/test_orthogonal_set.py"
MODEL = [
    f"{UNIT}/completion/test_{name}.py"
    for name in ("bias", "side_links", "complete", "complete_checks", "losses", "value_sizes")
]
STACKED = [
    f"{UNIT}/nn/test_{name}.py"
    for name in (
        "together", "together_again", "together_unusual", "evaluation", "plain_calls",
        "recomputation",
    )
]  # fmt: skip
# What is mutated, and the tests of it: its own folder, its laws, its examples. A file belongs to
# the first that names it.
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "turned": (
        ["parameterizations/turned", "sets/orthogonal.py", "linalg/turning.py"],
        [
            "tests/property/test_orthogonal.py",
            TURNS,
            "tests/property/test_turned_edges.py",
            f"{UNIT}/linalg/test_rotations.py",
            f"{UNIT}/parameterizations/test_multiplicative_families.py",
        ],
    ),
    "stacked": (
        [
            "parameterizations/source.py",
            "parameterizations/together.py",
            "nn/adapters/together.py",
            "nn/adapters/evaluation.py",
        ],
        [f"{UNIT}/parameterizations/test_stacked.py", *STACKED],
    ),
    "completion/model": (
        ["completion/model"],
        [*MODEL, f"{UNIT}/estimators/test_biases_alone.py"],
    ),
    "linalg": (["linalg"], [f"{UNIT}/linalg", TURNS]),
    "sets": (["sets"], [f"{UNIT}/sets", "tests/property/test_sets.py", TURNS]),
    "operator": (
        ["operator.py"],
        [f"{UNIT}/test_operator.py", "tests/property/test_operator.py"],
    ),
    "proofs": (
        ["proofs.py", "check_certificate.py"],
        [*PROOFS, f"{UNIT}/parameterizations/test_certificate.py"],
    ),
    "completion/certificates": (["completion/certificates"], [*CERTIFICATES, *PROOFS]),
    "nn": (["nn"], [f"{UNIT}/nn", *ADAPTERS]),
    "parameterizations": (["parameterizations"], [f"{UNIT}/parameterizations"]),
    # Of everything: what the tests of a package do not notice, its laws may.
    "laws": (
        [],
        [
            f"tests/property/test_{name}.py"
            for name in ("laws", "laws_family", "orthogonal", "complement", "derivatives")
        ],
    ),
}
NOTICED = ("killed", "stopped")


def population(
    groups: Iterable[str] = tuple(GROUPS), only: Sequence[str] = ()
) -> dict[str, list[Mutant]]:
    """Return every mutant of some groups, of all by default, or of some folders and files only.

    A few of them do not compile, which a sample finds out of those that it takes.
    """
    found: dict[str, list[Mutant]] = {}
    for group in groups:
        places, _ = GROUPS[group]
        paths = [ROOT / "lowrank_opt" / place for place in places]
        files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
        found[group] = [
            mutant
            for file in files
            if _group(file.relative_to(ROOT / "lowrank_opt").as_posix()) == group
            and (not only or _inside(file.relative_to(ROOT / "lowrank_opt").as_posix(), only))
            for mutant in mutants(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
        ]
    return found


def _inside(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def sample(found: dict[str, list[Mutant]], size: int, seed: int) -> list[Mutant]:
    """Return a simple random sample: it stays while a file stays, whatever becomes of others.

    Examples
    --------
    >>> some = population(["operator"])
    >>> sample(some, 2, seed=0) == sample(some, 2, seed=0)
    True
    """

    def place(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.id}".encode()).hexdigest()

    every = sorted((m for same in found.values() for m in same), key=place)
    programs = (m for m in every if m.compiles(_source(m.path)))
    return list(itertools.islice(programs, size))


@functools.cache
def _source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def sample_of_each(found: dict[str, list[Mutant]], size: int, seed: int) -> list[Mutant]:
    """Return so many mutants of every file: its score is then known as well as any other's."""
    files: dict[str, list[Mutant]] = {}
    for mutant in (m for same in found.values() for m in same):
        files.setdefault(mutant.path, []).append(mutant)
    return [m for same in files.values() for m in sample({"": same}, size, seed)]


def wilson(noticed: int, of: int) -> str:
    """Return a share with its 95 % interval, in per cent.

    Examples
    --------
    >>> wilson(95, 100)
    '95.0 (88.8 to 97.8)'
    """
    from scipy.stats import binomtest

    interval = binomtest(noticed, of).proportion_ci(method="wilson")
    return f"{100 * noticed / of:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def rows(lines: Sequence[dict[str, Any]], equivalent: Iterable[str] = ()) -> list[list[str]]:
    """Return the score of every group, of all, and of every file."""
    same = set(equivalent)
    counted = [line for line in lines if line["id"] not in same]
    by_name: dict[str, list[dict[str, Any]]] = {"all": counted}
    for line in counted:
        by_name.setdefault(_group(line["mutant"]["path"]), []).append(line)
    for line in sorted(counted, key=lambda line: line["mutant"]["path"]):
        by_name.setdefault(line["mutant"]["path"].removeprefix("lowrank_opt/"), []).append(line)
    found: list[list[str]] = []
    for name, own in by_name.items():
        noticed = sum(map(_noticed, own))
        found.append([name, str(len(own)), str(noticed), wilson(noticed, len(own))])
    return found


def _noticed(line: dict[str, Any]) -> bool:
    return line["outcome"] in NOTICED


def _group(path: str) -> str:
    inside = path.removeprefix("lowrank_opt/")
    return next(name for name, (places, _) in GROUPS.items() if _inside(inside, places))


def diff(mutant: Mutant) -> str:
    """Return what a mutant changes, as a diff without context."""
    source = _source(mutant.path)
    before, after = source.splitlines(), mutant.applied(source).splitlines()
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join([f"{mutant.path}:{mutant.line} {mutant.function}", *lines])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the outcomes that are known, the last one of each mutant."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({line["id"]: line for line in found}.values())


def run(chosen: Sequence[Mutant], folder: Path, seconds: float, *, own_only: bool = False) -> None:
    """Run mutants against the tests of their packages, and the survivors against all others.

    Those whose outcome is known are left out. What tests cost and call is measured once.
    """
    tests = {
        name: [*tests, *(f"lowrank_opt/{place}" for place in places)]
        for name, (places, tests) in GROUPS.items()
    }
    known = {x["id"] for x in read_lines(folder / "mutants.jsonl")}
    wanted = [m for m in chosen if m.id not in known]
    own: list[dict[str, object]] = [
        {
            "tests": tests[name],
            "everywhere": False,
            "mutants": [vars(m) for m in wanted if _group(m.path) == name],
        }
        for name in GROUPS
    ]
    # What the tests of a package cost is of no interest where none of its mutants is run.
    _serve([group for group in own if group["mutants"] or not own_only], folder, seconds)
    if own_only:
        return
    done = {
        x["id"] for x in read_lines(folder / "mutants.jsonl") if _noticed(x) or x.get("everywhere")
    }
    everywhere: dict[str, object] = {
        "tests": [test for same in tests.values() for test in same],
        "everywhere": True,
        "mutants": [vars(m) for m in chosen if m.id not in done],
    }
    _serve([everywhere], folder, seconds)


def forget(folder: Path) -> None:
    """Have survivors run again, against the tests of today."""
    lines = [x for x in read_lines(folder / "mutants.jsonl") if _noticed(x)]
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (folder / "mutants.jsonl").write_text(text, encoding="utf-8")


def _serve(groups: Sequence[dict[str, object]], folder: Path, seconds: float) -> None:
    """Run groups in a process that has not imported the package."""
    path = folder / "mutants.plan.json"
    measured = str((folder / "mutants.tests").resolve())
    plan = {"groups": groups, "seconds": seconds, "measured": measured}
    path.write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "-m", "experiments.mutation.server", str(path.resolve())]
    command.append(str((folder / "mutants.jsonl").resolve()))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    parser.add_argument("--size", type=int, default=420, help="of the sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, help="of every file, instead of a sample of all")
    parser.add_argument("--only", nargs="+", default=[], help="folders and files of the package")
    parser.add_argument("--own", action="store_true", help="against tests of their own package")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of tests for each mutant, unmutated"
    )
    parser.add_argument("--resume", action="store_true", help="keep what has been run")
    parser.add_argument("--again", action="store_true", help="run the survivors once more")
    options = parser.parse_args(arguments)
    folder = prepare_folder(options.out)
    found = population(only=options.only)
    if options.each:
        chosen = sample_of_each(found, options.each, options.seed)
    else:
        chosen = sample(found, options.size, options.seed)
    if options.again:
        forget(folder)
    elif not options.resume:
        (folder / "mutants.jsonl").unlink(missing_ok=True)
    run(chosen, folder, options.seconds, own_only=options.own)
    report(chosen, folder, vars(options))
    return 0


def report(chosen: Sequence[Mutant], folder: Path, options: dict[str, Any]) -> None:
    """Print the table and the survivors, and write the record."""
    ids = {m.id: m for m in chosen}
    lines = [x for x in read_lines(folder / "mutants.jsonl") if x["id"] in ids]
    header = ["what", "mutants", "noticed", "per cent (95 %)"]
    survivors = [diff(ids[x["id"]]) for x in lines if not _noticed(x)]
    table = rows(lines)
    print(text_table(header, table), *survivors, sep="\n\n")
    write_record(
        folder / "mutants.json",
        settings={name: str(value) for name, value in options.items()},
        table=markdown_table(header, table),
        survivors=[*survivors],
        mutants=[{k: v for k, v in x.items()} for x in lines],
    )


if __name__ == "__main__":
    sys.exit(main())
