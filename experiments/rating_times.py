"""What times of ratings add on MovieLens-100K: biases that move with time, beside two solvers.

``python -m experiments.rating_times`` prints test errors over the five official folds, without
and with times. Settings were chosen on a tenth of the training part of fold 1, with seed 5.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from experiments.rating_intervals import SOLVERS
from experiments.tables import text_table
from lowrank_opt.completion import fit_with_drift
from problems import movielens
from problems.metrics import rmse

# Ratings of one minute resemble each other; days of 24 hours helped less.
MINUTE = 60.0


def measure(solver: str, fold: int, path: str | None) -> list[str]:
    """Return one line of the table."""
    train, test = movielens.split_ratings(f"u{fold}", path=path)
    seen, new = train.observations(), test.observations()
    before, at = torch.from_numpy(train.timestamp), torch.from_numpy(test.timestamp)
    plain = SOLVERS[solver](seen).predict(new.rows, new.cols, clip=(1.0, 5.0))
    model = fit_with_drift(SOLVERS[solver], seen, before, day=MINUTE)
    timed = model.predict(new.rows, new.cols, at, clip=(1.0, 5.0))
    errors = [f"{rmse(x, new.values):.4f}" for x in (plain, timed)]
    return [solver, f"u{fold}", *errors]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.rating_times")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--path", help="folder or zip archive of the data set")
    chosen = parser.parse_args(arguments)
    lines = [measure(s, fold, chosen.path) for s in chosen.solvers for fold in chosen.folds]
    print(text_table(["solver", "fold", "without times", "with times"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
