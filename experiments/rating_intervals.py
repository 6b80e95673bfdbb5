"""Coverage of conformal intervals on MovieLens-100K: random and official test entries.

``python -m experiments.rating_intervals`` prints a table over the five official folds. A tenth of
each training part is held out for testing, a tenth of the rest calibrates.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch

import lowrank_opt as lo
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt.completion import (
    BayesianResult,
    CompletionResult,
    Conformal,
    bayesian,
    conformal,
    residual_scale,
    row_importance,
)
from problems import movielens

COVERAGE, SCALE, FEW = 0.9, (1.0, 5.0), 40
Result = CompletionResult | BayesianResult


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bayesian(seen: lo.Observations) -> BayesianResult:
    return bayesian(seen, 16, implicit=True, burn_in=20, samples=60, generator=_generator(0))


def _ball(seen: lo.Observations) -> CompletionResult:
    ball = lo.HomogeneousBall(seen.shape, 20, radius=400.0, generator=_generator(0))
    return lo.complete(seen, ball, validation=0.1, generator=_generator(3), max_iterations=150)


SOLVERS: dict[str, Callable[[lo.Observations], Result]] = {"bayesian": _bayesian, "ball": _ball}


def calibrated(
    result: Result, fitted: lo.Observations, calibration: lo.Observations, asked: lo.Observations
) -> dict[str, Conformal[Result]]:
    """Return intervals of each kind around one result; of `asked` only the rows are used."""
    residual, shift = residual_scale(result, fitted), row_importance(calibration, asked.rows)
    adaptive = "posterior" if isinstance(result, BayesianResult) else residual
    kinds = {
        "equal": conformal(result, calibration, bounds=SCALE),
        "residual": conformal(result, calibration, scale=residual, bounds=SCALE),
        "adaptive, importance": conformal(
            result, calibration, scale=adaptive, importance=shift, bounds=SCALE
        ),
    }
    if adaptive == "posterior":
        kinds["posterior"] = conformal(result, calibration, scale=adaptive, bounds=SCALE)
    return kinds


def lines_of(
    solver: str, name: str, train: lo.Observations, test: lo.Observations
) -> list[list[str]]:
    """Return the lines of a table: the coverage, in per cent, and the mean width of each kind."""
    rest, random = train.split(0.1, generator=_generator(2))
    fitted, calibration = rest.split(0.1, generator=_generator(1))
    result = SOLVERS[solver](fitted)
    short = train.row_counts[test.rows] < FEW
    asked = [random, test, *([test.take(short)] if bool(short.any()) else [])]
    lines: list[list[str]] = []
    for kind, intervals in calibrated(result, fitted, calibration, test).items():
        shares = [f"{100 * intervals.coverage(part, coverage=COVERAGE):.1f}" for part in asked]
        lower, upper = intervals.interval(test.rows, test.cols, coverage=COVERAGE)
        width = f"{float((upper - lower).mean()):.2f}"
        lines.append([solver, name, kind, *shares, *["-"] * (3 - len(shares)), width])
    return lines


def lines_of_fold(solver: str, fold: int, path: str | None) -> list[list[str]]:
    """Return the lines of an official fold."""
    return lines_of(solver, f"u{fold}", *movielens.fold("ml-100k", fold, path=path))


def study(session: Session) -> None:
    """Print the table and write the record."""
    chosen = session.options
    solvers, folds = (["ball"], [1]) if session.smoke else (chosen.solvers, chosen.folds)
    calls = [partial(lines_of_fold, s, fold, chosen.path) for s in solvers for fold in folds]
    lines = [line for part in session.run(calls, "folds") for line in part]
    header = ["solver", "fold", "widths", "random %", "official %", f"rows < {FEW} %", "width"]
    print(text_table(header, lines))
    settings: dict[str, Json] = {"coverage": COVERAGE, "few": FEW, "scale": list(SCALE)}
    runs: list[Json] = [dict(zip(header, line, strict=True)) for line in lines]
    table = markdown_table(header, lines)
    session.write("rating-intervals.json", settings=settings, runs=runs, table=table)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--path", help="folder or zip archive of the data set")


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
