"""Bayesian completion of MovieLens-100K: ratings only, with implicit feedback, and with features.

``python -m experiments.ratings_bayes`` prints a table over the five official folds. Ranks were
and numbers of draws were looked at on a tenth of the training parts of folds 1 to 3.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.tables import text_table
from lowrank_opt.completion import bayesian
from problems import movielens
from problems.metrics import rmse

BURN_IN, SAMPLES = 10, 100
METHODS: dict[str, tuple[int, bool, bool]] = {
    "ratings": (16, False, False),
    "implicit": (16, True, False),
    "implicit + side": (16, True, True),
}


def user_features(path: str | None) -> Tensor:
    """Return age brackets, gender and occupation of the users as indicators, a line for each."""
    ratings, _ = movielens.split_ratings("u1", path=path)
    table = movielens.users(path=path).loc[ratings.user_ids]
    ages = pd.cut(table["age"], [0, 17, 24, 34, 44, 49, 55, 200], labels=False)
    columns = [pd.get_dummies(x.astype(str)) for x in (ages, table["gender"], table["occupation"])]
    return torch.from_numpy(pd.concat(columns, axis=1).to_numpy(np.float64))


def item_features(path: str | None) -> Tensor:
    """Return the genres of the items, and the decades of their release, as indicators."""
    ratings, _ = movielens.split_ratings("u1", path=path)
    table = movielens.items(path=path).loc[ratings.item_ids]
    genres = table["genres"].fillna("").str.get_dummies("|")
    years = table["title"].str.extract(r"\((\d{4})\)", expand=False).astype(float)
    brackets = pd.cut(years, [0, 1950, 1960, 1970, 1980, 1990, 1993, 1995, 1996, 2000])
    columns = [genres, pd.get_dummies(brackets.astype(str))]
    return torch.from_numpy(pd.concat(columns, axis=1).to_numpy(np.float64))


def measure(method: str, fold: int, *, validate: bool, seed: int, path: str | None) -> list[str]:
    """Return one line of the table: fit on a fold, predict its test (or held-out) entries."""
    rank, implicit, side = METHODS[method]
    train, test = movielens.fold("ml-100k", fold, path=path)
    generator = torch.Generator().manual_seed(seed)
    if validate:
        train, test = train.split(0.1, generator=generator)
    features = ([user_features(path)], [item_features(path)]) if side else ([], [])
    wall, cpu = time.perf_counter(), time.process_time()
    posterior = bayesian(
        train,
        rank,
        implicit=implicit,
        row_features=features[0],
        col_features=features[1],
        burn_in=BURN_IN,
        samples=SAMPLES,
        generator=generator,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    mean, std = posterior.predict(test.rows, test.cols, return_std=True, clip=(1.0, 5.0))
    covered = ((test.values - mean).abs() < 1.6449 * std).double().mean()
    error = rmse(mean, test.values)
    return [method, f"u{fold}", f"{error:.4f}", f"{wall:.2f}", f"{cpu:.2f}", f"{covered:.3f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ratings_bayes")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--validate", action="store_true", help="hold out training entries instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", help="folder or zip archive of the data set")
    chosen = parser.parse_args(arguments)
    warm_up, _ = movielens.fold("ml-100k", 1, path=chosen.path)
    bayesian(warm_up, 2, burn_in=0, samples=1)  # compiles the loops
    settings = {"validate": chosen.validate, "seed": chosen.seed, "path": chosen.path}
    lines = [
        measure(method, fold, **settings) for method in chosen.methods for fold in chosen.folds
    ]
    header = ["method", "fold", "RMSE", "fit s", "CPU s", "in 90 % interval"]
    print(text_table(header, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
