"""Coverage of `MatrixCompletion.predict_interval` by what is known of an entry.

``python -m experiments.interval_coverage`` prints a table and writes a record. A tenth of the users
and a tenth of the items are left out whole, and a tenth of the other ratings; 90 % intervals are
asked for. Of data with more users, so many are drawn that about 100,000 ratings are fitted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt.estimators import MatrixCompletion
from problems import goodbooks, movielens
from problems.ratings import Ratings

COVERAGE, SHARE, RATINGS = 0.9, 0.1, 120_000
GROUPS = ("all", "few", "some", "more", "most", "new users", "new items", "both new")

DATA: dict[str, Callable[[], Ratings]] = {
    "ml-100k": lambda: movielens.load("ml-100k"),
    "ml-1m": lambda: movielens.load("ml-1m"),
    "goodbooks": goodbooks.load,
}


@dataclass(frozen=True)
class Table:
    """Ratings by position, shapes (nnz,).

    Parameters
    ----------
    rows, cols : array of int
    values : array
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    values: NDArray[np.floating]

    def take(self, here: NDArray[np.bool_]) -> "Table":
        """Return some of them."""
        return Table(self.rows[here], self.cols[here], self.values[here])

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Positions, shape (nnz, 2)."""
        return np.stack((self.rows, self.cols), axis=1)


def table_of(ratings: Ratings, rng: np.random.Generator) -> Table:
    """Return the ratings of so many users that there are not many more than `RATINGS`."""
    seen = ratings.observations()
    table = Table(seen.rows.numpy(), seen.cols.numpy(), seen.values.numpy())
    share = min(1.0, RATINGS / len(table.values))
    return table.take((rng.random(seen.shape[0]) < share)[table.rows])


def split(table: Table, rng: np.random.Generator) -> tuple[Table, Table]:
    """Return what is fitted and what is asked: new users, new items, other ratings."""
    new_row, new_col = (rng.random(int(x.max()) + 1) < SHARE for x in (table.rows, table.cols))
    new = new_row[table.rows] | new_col[table.cols] | (rng.random(len(table.values)) < SHARE)
    return table.take(~new), table.take(new)


def group_of(fitted: Table, asked: Table) -> NDArray[np.int64]:
    """Return the position in `GROUPS` of each entry: quarters of known pairs by user, or new."""
    size = int(max(fitted.rows.max(), asked.rows.max())) + 1
    width = int(max(fitted.cols.max(), asked.cols.max())) + 1
    rows = np.bincount(fitted.rows, minlength=size)[asked.rows]
    cols = np.bincount(fitted.cols, minlength=width)[asked.cols]
    known = (rows > 0) & (cols > 0)
    cuts = np.quantile(rows[known], [0.25, 0.5, 0.75])
    quarter = 1 + np.searchsorted(cuts, rows, side="left")
    return np.where(known, quarter, 5 + 2 * (rows == 0) * (cols == 0) + (rows > 0))


def inside(solver: str, fitted: Table, asked: Table, seed: int) -> NDArray[np.bool_]:
    """Return whether the values are in their intervals."""
    model = MatrixCompletion(solver=solver, random_state=seed).fit(fitted.pairs, fitted.values)
    low, high = model.predict_interval(asked.pairs, coverage=COVERAGE)
    return (low <= asked.values) & (asked.values <= high)


def covered(name: str, solver: str, seed: int) -> list[tuple[int, int]]:
    """Return how many of how many values are in their intervals, for each group of one split."""
    rng = np.random.default_rng(seed)
    fitted, asked = split(table_of(DATA[name](), rng), rng)
    hit, group = inside(solver, fitted, asked, seed), group_of(fitted, asked)
    parts = [hit[(group == g) | (g == 0)] for g in range(len(GROUPS))]
    return [(int(part.sum()), len(part)) for part in parts]


def line_of(name: str, solver: str, splits: Sequence[Sequence[tuple[int, int]]]) -> list[str]:
    """Return the coverage of each group in per cent, of all splits together."""
    sums = [[sum(x) for x in zip(*group, strict=True)] for group in zip(*splits, strict=True)]
    return [f"{name}, {solver}", *(f"{100 * hits / count:.1f}" for hits, count in sums)]


def study(session: Session) -> None:
    """Print the table and write the record."""
    chosen = session.options
    if session.smoke:
        chosen.data, chosen.solvers, chosen.seeds = ["ml-100k"], ["auto"], 1
    cases = [(name, solver) for name in chosen.data for solver in chosen.solvers]
    seeds = range(chosen.seeds)
    calls = [partial(covered, *case, seed) for case in cases for seed in seeds]
    found = session.run(calls, "splits")
    splits = {c: found[k * len(seeds) : (k + 1) * len(seeds)] for k, c in enumerate(cases)}
    header, lines = ["data, solver", *GROUPS], [line_of(*case, splits[case]) for case in cases]
    print(text_table(header, lines))
    runs: list[Json] = [
        {"data": name, "solver": solver, "seed": seed, "group": g, "inside": hits, "of": count}
        for (name, solver), parts in splits.items()
        for seed, groups in zip(seeds, parts, strict=True)
        for g, (hits, count) in zip(GROUPS, groups, strict=True)
    ]
    session.write(
        "coverage.json",
        settings={"coverage": COVERAGE, "share": SHARE, "seeds": len(seeds)},
        runs=runs,
        table=markdown_table(header, lines),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--solvers", nargs="+", default=["auto", "bayesian"])
    parser.add_argument("--seeds", type=int, default=3)


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
