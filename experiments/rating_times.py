"""What times of ratings add on MovieLens-100K: biases that move with time, beside two solvers.

``python -m experiments.rating_times`` prints test errors over the five official folds, without
and with times. Settings were chosen on a tenth of the training part of fold 1, with seed 5.
"""

import argparse
import sys
from functools import partial
from typing import Any

import torch

from experiments.rating_intervals import SOLVERS
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt.completion import fit_with_drift
from problems import movielens
from problems.metrics import rmse

# Ratings of one minute resemble each other; days of 24 hours helped less.
MINUTE = 60.0


def measure(solver: str, fold: int, path: str | None) -> dict[str, Any]:
    """Return the test errors without and with times."""
    train, test = movielens.split_ratings(f"u{fold}", path=path)
    seen, new = train.observations(), test.observations()
    before, at = torch.from_numpy(train.timestamp), torch.from_numpy(test.timestamp)
    plain = SOLVERS[solver](seen).predict(new.rows, new.cols, clip=(1.0, 5.0))
    model = fit_with_drift(SOLVERS[solver], seen, before, day=MINUTE)
    timed = model.predict(new.rows, new.cols, at, clip=(1.0, 5.0))
    errors = {"without": rmse(plain, new.values), "with": rmse(timed, new.values)}
    return {"solver": solver, "fold": fold} | errors


def study(session: Session) -> None:
    """Print the table and write the record."""
    chosen = session.options
    solvers, folds = (["ball"], [1]) if session.smoke else (chosen.solvers, chosen.folds)
    calls = [partial(measure, solver, fold, chosen.path) for solver in solvers for fold in folds]
    found = session.run(calls, "folds")
    header = ["solver", "fold", "without times", "with times"]
    rows = [
        [f["solver"], f"u{f['fold']}", f"{f['without']:.4f}", f"{f['with']:.4f}"] for f in found
    ]
    print(text_table(header, rows))
    table, runs = markdown_table(header, rows), list[Json](found)
    session.write("rating-times.json", settings={"day": MINUTE}, runs=runs, table=table)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--path", help="folder or zip archive of the data set")


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
