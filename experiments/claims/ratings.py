"""Claims on intervals and on optima of completed ratings."""

from collections import defaultdict

from experiments.claims.finding import Claim, Effect, Finding, Record, Rows, mean_interval

APART = 2.0
SAME_ERROR = 0.002


def coverage(record: Record) -> Finding:
    """Return the share of values inside their intervals, for each group of entries."""
    asked = 100 * record["settings"]["coverage"]
    shares: dict[str, list[float]] = defaultdict(list)
    for run in record["runs"]:
        if run["of"]:
            name = f"{run['data']}, {run['solver']}, {run['group']}"
            shares[name].append(100 * run["inside"] / run["of"])

    def effect(name: str) -> Effect:
        mean, low, high = mean_interval(shares[name])
        return Effect(name, mean, low, high, abs(mean - asked) <= APART)

    return Finding(
        tuple(effect(name) for name in shares),
        "per cent inside their interval",
        f"95 % over {record['settings']['seeds']} splits, Student's t",
        asked,
        f"Asked: {asked:g}, {APART:g} more or less.",
    )


def rank_is_no_matter(record: Record) -> Finding:
    """Return how far test errors of ranks are from those of the largest, where all are proved."""
    rows: Rows = [r for r in record["curve"] if r["gap"] <= record["asked_gap"]]
    at = {(r["rank"], r["radius"]): float(r["rmse"]) for r in rows}
    ranks = sorted({rank for rank, _ in at})

    def effect(rank: int) -> Effect:
        radii = [x for r, x in at if r == rank and (ranks[-1], x) in at]
        apart = max(abs(at[rank, x] - at[ranks[-1], x]) for x in radii)
        name = f"rank {rank}, {len(radii)} radii where both are proved"
        return Effect(name, 1000 * apart, holds=apart <= SAME_ERROR)

    shared = [r for r in ranks[:-1] if any((ranks[-1], x) in at for q, x in at if q == r)]
    return Finding(
        tuple(effect(rank) for rank in shared),
        "largest difference of test RMSE to the largest rank, in thousandths",
        "one start and one fold: the record has no interval over seeds",
        remark=f"Asked: {1000 * SAME_ERROR:g} at most. Fits without a proof are left out.",
    )


RATINGS = (
    Claim(
        "coverage-by-group",
        "Intervals of 90 % cover 90 % of each group, new users and items too.",
        "this library",
        "coverage.json",
        "python -m experiments.interval_coverage",
        coverage,
    ),
    Claim(
        "radius-not-rank",
        "At proved optima the radius decides the test error, and the rank does not.",
        "this library",
        "movielens.json",
        "python -m experiments.movielens",
        rank_is_no_matter,
    ),
)
