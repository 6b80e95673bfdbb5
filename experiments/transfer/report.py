"""What runs over rates say: which are usable, what is kept at equal accuracy; tables of both."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from experiments.records import Json
from experiments.tables import mean_and_spread
from experiments.transfer.methods import LORA
from experiments.transfer.runs import Outcome

# A rate is usable within one point of the best one; what is kept is compared three points below
# the best accuracy of LoRA, which most updates reach.
NEAR, BELOW = 1.0, 3.0
Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Point:
    """One run, or a mean of some: common logarithm of the rate, accuracy, skill kept."""

    log_rate: float
    accuracy: float
    kept: float

    def to(self, other: "Point", share: float) -> "Point":
        """Return the point at a share of the way to another one."""
        return Point(
            self.log_rate + share * (other.log_rate - self.log_rate),
            self.accuracy + share * (other.accuracy - self.accuracy),
            self.kept + share * (other.kept - self.kept),
        )


Curve = Sequence[Point]


def curve(runs: Sequence[Outcome], method: str, seeds: Sequence[int]) -> list[Point]:
    """Return a point for each rate, in order: means over some seeds, on validation data."""
    own = [o for o in runs if o.method == method and o.seed in seeds]
    found: list[Point] = []
    for lr in sorted({o.lr for o in own}):
        here = [o for o in own if o.lr == lr]
        accuracy = statistics.fmean(o.accuracy for o in here)
        found.append(Point(math.log10(lr), accuracy, statistics.fmean(o.kept for o in here)))
    return found


def best(points: Curve) -> Point:
    """Return the point of the highest accuracy; of several, the one that keeps most."""
    return max(points, key=lambda p: (p.accuracy, p.kept))


def usable(points: Curve, bar: float) -> tuple[float, float] | None:
    """Return the ends of the rates around the best one whose accuracy is at least `bar`.

    Logarithms, linear between neighbours; an end of the grid is an end.

    Examples
    --------
    >>> usable([Point(-2, 50, 0), Point(-1, 60, 0), Point(0, 40, 0)], 55)
    (-1.5, -0.75)
    """
    top = points.index(best(points))
    if points[top].accuracy < bar:
        return None
    below, above = points[top::-1], points[top:]
    return _end(below, bar), _end(above, bar)


def _end(points: Curve, bar: float) -> float:
    for here, there in pairwise(points):
        if there.accuracy < bar:
            return here.to(there, (here.accuracy - bar) / (here.accuracy - there.accuracy)).log_rate
    return points[-1].log_rate


def kept_at(points: Curve, bar: float) -> float | None:
    """Return the most that is kept with an accuracy of at least `bar`, at or between rates.

    Examples
    --------
    >>> kept_at([Point(-2, 50, 80), Point(-1, 60, 70), Point(0, 40, 20)], 55)
    75.0
    """
    reached = [p.kept for p in _with_crossings(points, bar) if p.accuracy >= bar - 1e-9]
    return max(reached, default=None)


def _with_crossings(points: Curve, bar: float) -> Iterator[Point]:
    yield from points
    for here, there in pairwise(points):
        if (here.accuracy - bar) * (there.accuracy - bar) < 0:
            yield here.to(there, (here.accuracy - bar) / (here.accuracy - there.accuracy))


def measured(runs: Sequence[Outcome]) -> list[dict[str, Json]]:
    """Return for each method and seed its usable rates and what it keeps at equal accuracy.

    `width` counts decades within a point of the method's own best accuracy, `common_width` those
    within three points of LoRA's best, `kept` is at the latter, null where it is not reached;
    `cut` tells that the grid ends before the usable rates do.
    """
    found: list[dict[str, Json]] = []
    rates = [math.log10(o.lr) for o in runs]
    for method in dict.fromkeys(o.method for o in runs):
        for seed in sorted({o.seed for o in runs}):
            own = curve(runs, method, [seed])
            bar = best(curve(runs, LORA, [seed])).accuracy - BELOW
            ends = usable(own, best(own).accuracy - NEAR)
            common = usable(own, bar)
            assert ends is not None, "the best point is near itself"
            found.append(
                {
                    "method": method,
                    "seed": seed,
                    "width": ends[1] - ends[0],
                    "common_width": 0.0 if common is None else common[1] - common[0],
                    "cut": ends[0] == min(rates) or ends[1] == max(rates),
                    "kept": kept_at(own, bar),
                }
            )
    return found


def kept_when_rewound(final: Sequence[Outcome]) -> list[dict[str, Json]]:
    """Return what is kept, in validation, three points below LoRA's best, on the way to zero.

    One row for each run that was rewound; null where that accuracy is not reached.
    """
    paths = {
        (o.method, o.seed): [Point(*point) for point in o.path] for o in final if len(o.path) > 0
    }
    bars = {seed: best(p).accuracy - BELOW for (name, seed), p in paths.items() if name == LORA}
    return [
        {"method": name, "seed": seed, "kept": kept_at(path, bars[seed])}
        for (name, seed), path in paths.items()
        if seed in bars
    ]


def rate_table(runs: Sequence[Outcome], found: Sequence[Mapping[str, Json]]) -> Table:
    """Return one row for each method: its best rate, usable rates, and what it keeps."""
    header = ["update", "best rate", "accuracy there", "decades within 1 point", "from", "to"]
    header += ["decades within 3 of LoRA", "kept there at most"]
    seeds = sorted({o.seed for o in runs})
    rows: list[list[str]] = []
    for method in dict.fromkeys(o.method for o in runs):
        own = [row for row in found if row["method"] == method]
        mean = curve(runs, method, seeds)
        ends = usable(mean, best(mean).accuracy - NEAR)
        assert ends is not None, "the best point is near itself"
        at_least = "≥ " if any(row["cut"] for row in own) else ""
        kept = [float(str(row["kept"])) for row in own if row["kept"] is not None]
        rows.append(
            [
                method,
                f"{10 ** best(mean).log_rate:.1g}",
                f"{best(mean).accuracy:.1f}",
                at_least + mean_and_spread([float(str(r["width"])) for r in own], digits=2),
                *(f"{10**x:.2g}" for x in ends),
                mean_and_spread([float(str(r["common_width"])) for r in own], digits=2),
                mean_and_spread(kept, digits=1) if len(kept) == len(seeds) else "not reached",
            ]
        )
    return header, rows


def final_table(final: Sequence[Outcome]) -> Table:
    """Return test results at the chosen rate, one row for each method."""
    header = ["update", "trained numbers", "rate", "new task", "minus LoRA"]
    header += ["old task", "minus LoRA"]
    rows: list[list[str]] = []
    for method in dict.fromkeys(o.method for o in final):
        own = [o for o in final if o.method == method]
        row = [method, f"{own[0].trained:,}", f"{own[0].lr:.1g}"]
        for quantity in ("test_accuracy", "test_kept"):
            row.append(mean_and_spread([getattr(o, quantity) for o in own], digits=1))
            row.append("" if method == LORA else _gained(final, method, quantity))
        rows.append(row)
    return header, rows


def _gained(final: Sequence[Outcome], method: str, quantity: str) -> str:
    at = {(o.method, o.seed): float(getattr(o, quantity)) for o in final}
    seeds = sorted(seed for name, seed in at if name == method and (LORA, seed) in at)
    return mean_and_spread([at[method, s] - at[LORA, s] for s in seeds], digits=1)
