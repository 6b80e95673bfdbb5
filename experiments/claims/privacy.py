"""Claims on private averages of adapters."""

from experiments.claims.finding import (
    TELLING,
    Claim,
    Finding,
    Record,
    Rows,
    gain,
    over_seeds,
    paired,
)

_LARGE = 1e5


def _private(record: Record) -> list[float]:
    return sorted({row["epsilon"] for row in record["final"] if row["epsilon"] < _LARGE})


def noise_on_left_factors(record: Record) -> Finding:
    """Return gains of noise on left factors over noise on all entries, at each epsilon."""
    effects = tuple(
        gain(
            f"epsilon {epsilon:g}",
            paired(_at(record, epsilon), "ffa", "dense", "test", by="mechanism"),
            telling=TELLING,
        )
        for epsilon in _private(record)
    )
    seeds = len({row["seed"] for row in record["final"]})
    unit = "points of test accuracy over noise on all entries, each at its best radius"
    return Finding(effects, unit, over_seeds(seeds))


def learns_in_private(record: Record) -> Finding:
    """Return what private averages gain over the network without an update."""
    rows: Rows = record["final"]
    effects = tuple(
        gain(
            f"epsilon {epsilon:g}, {'left factors' if mechanism == 'ffa' else 'all entries'}",
            [row["test"] - row["before"] for row in _at(record, epsilon, mechanism)],
            telling=TELLING,
        )
        for epsilon in _private(record)
        for mechanism in ("ffa", "dense")
    )
    seeds = len({row["seed"] for row in rows})
    unit = "points of test accuracy over the network without an update"
    return Finding(effects, unit, over_seeds(seeds))


def _at(record: Record, epsilon: float, mechanism: str | None = None) -> Rows:
    return [
        row
        for row in record["final"]
        if row["epsilon"] == epsilon and mechanism in (None, row["mechanism"])
    ]


_RECORD = ("private-averages.json", "python -m experiments.private_averages")

PRIVACY = (
    Claim(
        "private-ffa",
        "Private averages are more accurate with a frozen right factor (FFA-LoRA), where noise "
        "goes on fewer numbers.",
        "Sun et al., 2403.12313",
        *_RECORD,
        noise_on_left_factors,
    ),
    Claim(
        "private-learning",
        "300 clients learn something together at a privacy of epsilon 2 and 8.",
        "this library",
        *_RECORD,
        learns_in_private,
    ),
)
