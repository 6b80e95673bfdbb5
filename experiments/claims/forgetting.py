"""Claims on intruder dimensions and on tasks that are learnt in sequence."""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.claims.finding import (
    TELLING,
    Claim,
    Effect,
    Finding,
    Record,
    gain,
    mean_interval,
    over_seeds,
    paired,
)
from experiments.intruders import rank_correlation

# Shares of right answers on the new task that all methods reach with every seed.
BARS = (0.8, 0.85)


def _learned(record: Record) -> list[dict[str, Any]]:
    return [run for run in record["runs"] if run["turned_accuracy"] > 0.5]


def intruders_go_with_forgetting(record: Record) -> Finding:
    """Return rank correlations with the loss on the old task, seed by seed."""
    runs = _learned(record)
    seeds = sorted({run["seed"] for run in runs})

    def effect(label: str, quantity: str, *, beside: bool = False) -> Effect:
        found = []
        for seed in seeds:
            own = [run for run in runs if run["seed"] == seed]
            x, y = ([float(run[q]) for run in own] for q in (quantity, "upright_loss"))
            found.append(rank_correlation(x, y))
        return gain(label, found, beside=beside)

    return Finding(
        (
            effect("number of intruders", "intruders"),
            effect("Frobenius norm of the update", "frobenius", beside=True),
        ),
        "rank correlation with the loss on the old task",
        f"95 % over {len(seeds)} seeds, Student's t",
        remark="Runs that diverged are left out. The size of the update says as much.",
    )


def full_has_no_intruders(record: Record) -> Finding:
    """Return the number of intruders after full fine-tuning, at each rate."""
    rows = [r for r in record["runs"] if r["setting"]["method"] == "all weights"]
    rates = sorted({r["setting"]["lr"] for r in rows})

    def effect(lr: float) -> Effect:
        counts = [float(r["intruders"]) for r in rows if r["setting"]["lr"] == lr]
        mean, low, high = mean_interval(counts)
        return Effect(f"all weights, rate {lr:g}", mean, max(low, 0.0), high, max(counts) == 0)

    return Finding(
        tuple(effect(lr) for lr in rates),
        "intruders of 80 vectors",
        f"95 % over {len({r['seed'] for r in rows})} seeds, Student's t",
        remark="Asked: none, in any run.",
    )


def fewer_at_equal_accuracy(record: Record, methods: tuple[str, ...]) -> Finding:
    """Return how many intruders less than LoRA a method needs for an accuracy, seed by seed.

    Of all runs of a method that reach the accuracy, over ranks, radii and rates, the one with the
    fewest counts.
    """
    rows: list[dict[str, Any]] = [{**r, "method": r["setting"]["method"]} for r in record["runs"]]

    def fewest(bar: float) -> list[dict[str, Any]]:
        found: dict[tuple[str, int], float] = {}
        for row in rows:
            if row["turned_accuracy"] >= bar:
                key = row["method"], row["seed"]
                found[key] = min(found.get(key, math.inf), float(row["intruders"]))
        return [{"method": m, "seed": s, "fewer": -n} for (m, s), n in found.items()]

    effects = tuple(
        gain(f"{name}, {bar:.0%} right", paired(fewest(bar), name, "LoRA", "fewer"), telling=1.0)
        for name in methods
        for bar in BARS
    )
    seeds = len({row["seed"] for row in rows})
    unit = "intruders fewer than LoRA's, of 80 vectors, at the same accuracy on the new task"
    return Finding(effects, unit, over_seeds(seeds))


def scaling_intruders(record: Record) -> Finding:
    """Return what scaling the top intruders by 0.7 does, beside a shrink to the same norm."""
    runs = [r for r in _learned(record) if r["setting"]["method"] == "LoRA" and r["changes"]]
    seeds = sorted({run["seed"] for run in runs})

    def log_ratio(run: dict[str, Any], kind: str, quantity: str) -> float:
        first = run["changes"][0]
        now = next(c for c in run["changes"] if (c["kind"], c["factor"]) == (kind, 0.7))
        return math.log(now[quantity] / first[quantity])

    def effect(label: str, value: Callable[[dict[str, Any]], float], least: float) -> Effect:
        means = [statistics.fmean(value(r) for r in runs if r["seed"] == s) for s in seeds]
        mean, low, high = mean_interval([100 * x for x in means])
        return Effect(
            label, mean, low, high, True if low > least else False if high < least else None
        )

    return Finding(
        (
            effect(
                "loss on the old task, saved",
                lambda r: -log_ratio(r, "intruder", "upright_loss"),
                0,
            ),
            effect(
                "the same beyond a shrink to the same norm",
                lambda r: (
                    log_ratio(r, "same norm", "upright_loss")
                    - log_ratio(r, "intruder", "upright_loss")
                ),
                0,
            ),
            effect(
                "loss on the new task, saved",
                lambda r: -log_ratio(r, "intruder", "turned_loss"),
                -2,
            ),
        ),
        "log points (about per cent)",
        f"95 % over {len(seeds)} seeds, Student's t",
        remark="Asked: the old task gains, more than by a shrink; the new one loses 2 % at most.",
    )


def sequence_gain(record: Record, method: str) -> Finding:
    """Return the gain over plain LoRA in mean accuracy on five tasks, after the last one."""
    rows = [
        {**row, "mean": 100 * statistics.fmean(row["accuracies"])} for row in record["outcomes"]
    ]
    effect = gain(method, paired(rows, method, "LoRA", "mean"), telling=TELLING)
    seeds = len({row["seed"] for row in rows})
    return Finding(
        (effect,), "points of accuracy over plain LoRA, mean of 5 tasks", over_seeds(seeds)
    )


_INTRUDERS = ("intruders.json", "python -m experiments.intruders")
_SEQUENCE = ("tasks-in-sequence.json", "python -m experiments.tasks_in_sequence")

FORGETTING = (
    Claim(
        "intruders-forgetting",
        "Intruder dimensions go with forgetting.",
        "Shuttleworth et al., 2410.21228",
        *_INTRUDERS,
        intruders_go_with_forgetting,
    ),
    Claim(
        "full-no-intruders",
        "Full fine-tuning makes no intruder dimensions.",
        "Shuttleworth et al., 2410.21228",
        *_INTRUDERS,
        full_has_no_intruders,
    ),
    Claim(
        "intruders-equal-accuracy",
        "At the same accuracy, full fine-tuning has fewer intruder dimensions than LoRA.",
        "Shuttleworth et al., 2410.21228",
        *_INTRUDERS,
        partial(fewer_at_equal_accuracy, methods=("all weights",)),
    ),
    Claim(
        "intruders-bounded",
        "At the same accuracy, updates of bounded norm have fewer intruder dimensions than LoRA.",
        "this library",
        *_INTRUDERS,
        partial(fewer_at_equal_accuracy, methods=("NBLoRA", "DeLoRA")),
    ),
    Claim(
        "scaling-intruders",
        "Scaling intruders down brings the old task back at almost no cost to the new one.",
        "Shuttleworth et al., 2410.21228",
        *_INTRUDERS,
        scaling_intruders,
    ),
    *(
        Claim(
            f"sequence-{method.lower()}",
            f"Updates {where} ({method}) forget less than LoRA's.",
            source,
            *_SEQUENCE,
            partial(sequence_gain, method=method),
        )
        for method, where, source in (
            ("InfLoRA", "outside of earlier inputs", "Liang and Li, 2404.00228"),
            ("LoRA-Null", "in the null space of activations", "2503.02659"),
            ("O-LoRA", "orthogonal to earlier ones", "Wang et al., 2310.14152"),
            ("OPLoRA", "beside the leading singular directions", "2510.13003"),
            ("CLoRA", "with a random null space", "Lu et al., 2410.16801"),
            ("OSF", "of all but the leading directions", "Nayak et al., 2504.07097"),
        )
    ),
)
