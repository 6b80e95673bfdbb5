"""Bayesian completion of MovieLens: ratings only, with implicit feedback, and with features.

Ratings are numbers, or ordered levels.

``python -m experiments.ratings_bayes`` prints a table over the official folds of MovieLens-100K and
writes a record; ``--sets ml-1m`` takes a random tenth of MovieLens-1M for each of ``--seeds``.
Ranks, numbers of draws and strengths were looked at on a tenth of the training parts.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.peers import fits
from experiments.peers.split import Split
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt.completion import bayesian
from lowrank_opt.observations import Observations
from problems import movielens
from problems.metrics import rmse
from problems.ratings import Ratings

# Implicit feedback, features, and ratings as ordered levels.
METHODS: dict[str, tuple[bool, bool, bool]] = {
    "ratings": (False, False, False),
    "implicit": (True, False, False),
    "implicit + side": (True, True, False),
    "ordered": (False, False, True),
    "ordered, implicit + side": (True, True, True),
}
SETS = ("u1", "u2", "u3", "u4", "u5", "ml-1m")


@dataclass(frozen=True)
class Draws:
    """Rank, sweeps left out, draws kept, sweeps for each of them, and the prior on noise levels."""

    rank: int
    burn_in: int
    samples: int
    thinning: int = 1
    noise_strength: float = 50.0


SETTINGS = {"ml-100k": Draws(16, 10, 100), "ml-1m": Draws(20, 20, 300)}
ORDERED = {"ml-100k": Draws(16, 10, 100), "ml-1m": Draws(32, 100, 150, 2, 200.0)}
SMOKE = Draws(2, 1, 2)


def user_features(path: str | None, variant: str = "ml-100k") -> Tensor:
    """Return age brackets, gender and occupation of the users as indicators, a line for each."""
    table = movielens.users(variant, path=path).loc[_ratings(variant, path).user_ids]
    ages = pd.cut(table["age"], [0, 17, 24, 34, 44, 49, 55, 200], labels=False)
    columns = [pd.get_dummies(x.astype(str)) for x in (ages, table["gender"], table["occupation"])]
    return torch.from_numpy(pd.concat(columns, axis=1).to_numpy(np.float64))


def item_features(path: str | None, variant: str = "ml-100k") -> Tensor:
    """Return the genres of the items, and the decades of their release, as indicators."""
    table = movielens.items(variant, path=path).loc[_ratings(variant, path).item_ids]
    genres = table["genres"].fillna("").str.get_dummies("|")
    years = table["title"].str.extract(r"\((\d{4})\)", expand=False).astype(float)
    brackets = pd.cut(years, [0, 1950, 1960, 1970, 1980, 1990, 1993, 1995, 1996, 2000])
    columns = [genres, pd.get_dummies(brackets.astype(str))]
    return torch.from_numpy(pd.concat(columns, axis=1).to_numpy(np.float64))


def _draws(method: str, name: str) -> Draws:
    settings = ORDERED if METHODS[method][2] else SETTINGS
    return settings["ml-1m" if name == "ml-1m" else "ml-100k"]


def _ratings(variant: str, path: str | None) -> Ratings:
    if variant == "ml-100k":
        return movielens.split_ratings("u1", path=path)[0]
    return movielens.load(variant, path=path)


def parts(name: str, seed: int, path: str | None) -> tuple[Observations, Observations]:
    """Return what is fitted and what is asked, of an official fold or of a random 90/10 split."""
    if name != "ml-1m":
        return movielens.fold("ml-100k", int(name[1:]), path=path)
    every = movielens.load(name, path=path).observations()
    return every.split(0.1, generator=torch.Generator().manual_seed(seed))


def measure(
    method: str, name: str, seed: int, draws: Draws, path: str | None, *, validate: bool
) -> dict[str, Any]:
    """Fit, and return errors on the test (or held-out) entries, coverage of 90 % and costs."""
    implicit, side, ordered = METHODS[method]
    variant = "ml-1m" if name == "ml-1m" else "ml-100k"
    train, test = parts(name, seed, path)
    generator = torch.Generator().manual_seed(seed)
    if validate:
        train, test = train.split(0.1, generator=generator)
    features = (user_features(path, variant), item_features(path, variant)) if side else ()
    wall, cpu = time.perf_counter(), time.process_time()
    posterior = bayesian(
        train,
        draws.rank,
        loss="ordered_probit" if ordered else "squared",
        implicit=implicit,
        row_features=features[:1],
        col_features=features[1:],
        burn_in=draws.burn_in,
        samples=draws.samples,
        thinning=draws.thinning,
        noise_strength=draws.noise_strength,
        generator=generator,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    mean, std = posterior.predict(test.rows, test.cols, return_std=True, clip=(1.0, 5.0))
    covered = float(((test.values - mean).abs() < 1.6449 * std).double().mean())
    sweeps = draws.burn_in + draws.samples * draws.thinning
    costs = {"seconds": wall, "cpu_seconds": cpu, "rank": draws.rank, "samples": draws.samples}
    costs["sweeps"] = sweeps
    errors = {"rmse": rmse(mean, test.values), "covered": covered}
    return {"method": method, "set": name, "seed": seed, **errors, **costs}


def peer_cost(sweeps: int, rank: int, seed: int, path: str | None) -> dict[str, Any]:
    """Return CPU seconds of a sweep of myFM on ML-1M: ordered, with implicit feedback and side."""
    train, test = parts("ml-1m", seed, path)
    features = (user_features(path, "ml-1m"), item_features(path, "ml-1m"))
    entries = (train.rows, train.cols, train.values, test.rows, test.cols, test.values)
    split = Split(*(x.numpy() for x in (*entries, *features)))
    settings: fits.Settings = {"rank": rank, "epochs": sweeps, "ordered": True}
    settings |= {"implicit": True, "side": True}
    timer = _Timer()
    fits.myfm(split, settings, seed, timer)
    return {"sweeps": sweeps, "rank": rank, "cpu_seconds": timer.cpu_seconds}


class _Timer(AbstractContextManager["_Timer"]):
    """CPU seconds of a block."""

    cpu_seconds = 0.0

    def __enter__(self) -> "_Timer":
        self.cpu_seconds -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu_seconds += time.process_time()


def compile_loops() -> None:
    """Prepare a worker: no fit pays for compilation."""
    seen = Observations([0, 1, 2], [0, 1, 0], [1.0, 2.0, 3.0], (3, 2))
    bayesian(seen, 2, burn_in=0, samples=1)
    bayesian(seen, 2, loss="ordered_probit", burn_in=0, samples=1)


def study(session: Session) -> None:
    """Print the table and write the record."""
    chosen = session.options
    methods, sets, seeds = chosen.methods, chosen.sets, range(chosen.seeds)
    if session.smoke:
        methods, sets, seeds = ["implicit + side"], ["u1"], range(1)
    calls = [
        partial(
            measure,
            method,
            name,
            seed,
            SMOKE if session.smoke else _draws(method, name),
            chosen.path,
            validate=chosen.validate,
        )
        for name in sets
        for method in methods
        for seed in seeds
    ]
    peers = list[dict[str, Any]]()
    if chosen.peer_sweeps and not session.smoke:
        rank = ORDERED["ml-1m"].rank
        beside = [partial(peer_cost, chosen.peer_sweeps, rank, k, chosen.path) for k in range(2)]
        # Between the chains, in the company that they have.
        mixed: list[partial[Any]] = [beside[0], *calls, beside[1]]
        _ = session.run(mixed, "chains and a peer")
        peers = session.run(beside, "peer")
    runs = session.run(calls, "chains")
    header = ["method", "set", "seed", "rank", "draws", "sweeps", "RMSE", "CPU s", "in 90 %"]
    rows = [
        [
            r["method"],
            r["set"],
            str(r["seed"]),
            str(r["rank"]),
            str(r["samples"]),
            str(r["sweeps"]),
            f"{r['rmse']:.4f}",
            f"{r['cpu_seconds']:.1f}",
            f"{r['covered']:.3f}",
        ]
        for r in runs
    ]
    print(text_table(header, rows))
    session.write(
        "ratings-bayes.json",
        settings={"validate": chosen.validate},
        runs=list[Json](runs),
        myfm=list[Json](peers),
        table=markdown_table(header, rows),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:5]))
    parser.add_argument("--validate", action="store_true", help="hold out training entries instead")
    parser.add_argument("--seeds", type=int, default=1, help="chains, of ml-1m splits too")
    parser.add_argument(
        "--peer-sweeps", type=int, default=0, help="of myFM, for its time, on ml-1m"
    )
    parser.add_argument("--path", help="folder or zip archive of the data set")


main = experiment(study, __doc__, ready=compile_loops, options=_options)

if __name__ == "__main__":
    sys.exit(main())
