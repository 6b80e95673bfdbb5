"""Coverage of `MatrixCompletion.predict_interval` by what is known of an entry.

``python -m experiments.interval_coverage`` prints a table. A tenth of the users and a tenth of the
items are left out whole, and a tenth of the other ratings; 90 % intervals are asked for. Of data
with more users, so many are drawn that about 100,000 ratings are fitted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.tables import markdown_table
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


def line_of(name: str, solver: str, seeds: int) -> list[str]:
    """Return the coverage of each group in per cent, of all splits together."""
    ratings, hits, groups = DATA[name](), list[NDArray[np.bool_]](), list[NDArray[np.int64]]()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        fitted, asked = split(table_of(ratings, rng), rng)
        hits.append(inside(solver, fitted, asked, seed))
        groups.append(group_of(fitted, asked))
    hit, group = np.concatenate(hits), np.concatenate(groups)
    shares = [100 * hit[(group == g) | (g == 0)].mean() for g in range(len(GROUPS))]
    return [f"{name}, {solver}", *(f"{x:.1f}" for x in shares)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.interval_coverage")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--solvers", nargs="+", default=["auto", "bayesian"])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    lines = [
        line_of(name, solver, chosen.seeds) for name in chosen.data for solver in chosen.solvers
    ]
    print(markdown_table(["data, solver", *GROUPS], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
