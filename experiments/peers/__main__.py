"""Run this library and the installed peers on the same folds, in alternating order.

``python -m experiments.peers`` writes ``peers.json`` (seed, settings, environment, revision, every
fit), ``peers.md`` and ``peers.png``. Each fit runs in a process of its own; what the record has
already is not run again. Peers may live in another environment: name its interpreter with
``--python``. MovieLens is read as by `problems.movielens`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.peers import report
from experiments.peers.methods import METHODS, PeerMethod
from experiments.peers.split import Split
from experiments.peers.worker import MARK
from experiments.ratings_bayes import item_features, user_features
from experiments.records import environment, prepare_folder, write_record
from lowrank_opt.errors import LowRankError
from problems import movielens
from problems.splits import random_split

SETS = ("u1", "u2", "u3", "u4", "u5", "ml-1m")
QUICK = {"cornac MF", "variational", "myFM", "bayesian"}
_ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON", "LK")
Run = dict[str, object]


def make_split(dataset: str, path: str | None) -> Split:
    """Return an official fold of ML-100K, or the seeded 90/10 split of ML-1M."""
    if dataset == "ml-1m":
        ratings = movielens.load(dataset, path=path).observations()
        train, test = random_split(ratings, generator=torch.Generator().manual_seed(0))
        features = [np.zeros((size, 0)) for size in train.shape]
    else:
        train, test = movielens.split(dataset, path=path)
        features = [f(path).numpy() for f in (user_features, item_features)]
    parts = (train.rows, train.cols, train.values, test.rows, test.cols, test.values)
    return Split(*(x.numpy() for x in parts), *features)


def run(
    method: PeerMethod, dataset: str, file: Path, seed: int, options: argparse.Namespace
) -> Run:
    """Fit in another process and return what it printed, or why it did not."""
    settings = method.settings(dataset)
    call = {"module": method.module, "function": method.function, "settings": settings}
    command = [
        sys.executable if method.ours else options.python,
        *("-m", "experiments.peers.worker", str(file), json.dumps(call | {"seed": seed})),
    ]
    env = os.environ | {f"{name}_NUM_THREADS": str(options.threads) for name in _THREADS}
    line: Run = {"method": method.name, "set": dataset, "seed": seed, "settings": settings}
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=env,
            timeout=options.timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return line | {"error": f"stopped after {options.timeout} s"}
    results = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
    if not results:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return line | {"error": last[0][:300]}
    return line | json.loads(results[0].removeprefix(MARK))


def describe(line: Run) -> str:
    """Return one line for the terminal."""
    head = f"{line['set']:6} {line['method']:42}"
    if "missing" in line:
        return f"{head} not installed"
    if "error" in line:
        return f"{head} failed: {line['error']}"
    numbers = (line["rmse"], line["fit_seconds"], line["cpu_seconds"])
    return head + " RMSE {:.4f}  fit {:.2f} s  CPU {:.2f} s".format(*numbers)


def compare(options: argparse.Namespace) -> None:
    """Run what is missing, and write the record after every fit."""
    folder = prepare_folder(options.out)
    record_path = folder / "peers.json"
    record: dict[str, Any] = {"runs": []}
    if record_path.exists():
        record = json.loads(record_path.read_text(encoding="utf-8"))
    record |= {"environment": environment(), "threads": options.threads}
    methods = [m for m in METHODS if not options.methods or m.name in options.methods]
    for dataset in options.folds:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "split.npz"
            make_split(dataset, options.path).save(file)
            for seed in range(options.seeds):
                for method in methods:
                    key = (method.name, dataset, seed, method.settings(dataset))
                    if key[3] is None or any(_key(x) == key for x in record["runs"] if "rmse" in x):
                        continue
                    line = run(method, dataset, file, seed, options)
                    print(describe(line), flush=True)
                    others = [x for x in record["runs"] if _key(x)[:3] != key[:3]]
                    record["runs"] = [*others, line]
                    write_record(record_path, **record)
    (folder / "peers.md").write_text(report.tables(record["runs"]) + "\n", encoding="utf-8")
    report.figure(record["runs"], options.folds[0], folder / "peers.png")
    print(f"\n{report.tables(record['runs'])}\n\nwritten to {folder}")


def _key(run: Run) -> tuple[object, ...]:
    return run["method"], run["set"], run["seed"], run["settings"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.peers", description=__doc__)
    parser.add_argument("--folds", nargs="+", choices=SETS, default=list(SETS[:5]))
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS])
    parser.add_argument("--quick", action="store_true", help="fold u1, two peers, two methods")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each method on each fold")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one fit")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--path", help="folder or zip archive of MovieLens")
    options = parser.parse_args(arguments)
    if options.quick:
        options.folds, options.methods = ["u1"], sorted(QUICK)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 with a message if it cannot start."""
    try:
        compare(parse(arguments))
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
