"""Claims on rates, forgetting and accuracy when a trained network is adapted to another task."""

from collections.abc import Sequence
from functools import partial

from experiments.claims.finding import (
    TELLING,
    Claim,
    Effect,
    Finding,
    Record,
    Rows,
    gain,
    mean_interval,
    over_seeds,
    paired,
)
from experiments.transfer.methods import FULL, LORA, RADII

# Rates stand half a decade apart: a range that is wider by less is not told from none.
STEP = 0.5
MARGIN = 1.0
_NB = tuple(f"NBLoRA, radius {radius:g}" for radius in RADII)
BALLS = (*_NB, "HomogeneousBall, radius 8", "DeLoRA, radius 8")


def over_lora(
    record: Record, methods: Sequence[str], quantity: str, *, unit: str, telling: float
) -> Finding:
    """Return gains over LoRA in something that was measured on validation data, seed by seed."""
    rows: Rows = [row for row in record["measured"] if row[quantity] is not None]
    seeds = {row["seed"] for row in rows}
    found = {name: paired(rows, name, LORA, quantity) for name in methods}
    effects = [
        gain(name, values, telling=telling)
        for name, values in found.items()
        if len(values) == len(seeds)
    ]
    absent = [name for name, values in found.items() if len(values) != len(seeds)]
    remark = f"Not as accurate at any rate, so not compared: {', '.join(absent)}." if absent else ""
    return Finding(tuple(effects), unit, over_seeds(len(seeds)), remark=remark)


def gains_in_test(
    record: Record,
    methods: Sequence[str],
    quantity: str,
    *,
    unit: str,
    margin: float | None = None,
) -> Finding:
    """Return gains over LoRA in the test, at the chosen rates.

    With a `margin` the question is whether a method is at most so many points behind.
    """
    rows: Rows = record["final"]
    effects: list[Effect] = []
    for name in methods:
        values = paired(rows, name, LORA, quantity)
        if not values:
            continue
        mean, low, high = mean_interval(values)
        if margin is None:
            effects.append(gain(name, values, telling=TELLING))
        else:
            decided = low > -margin or high < -margin
            effects.append(Effect(name, mean, low, high, low > -margin if decided else None))
    remark = "" if margin is None else f"Asked: at most {margin:g} point behind."
    seeds = len({row["seed"] for row in rows})
    return Finding(tuple(effects), unit, over_seeds(seeds), remark=remark)


def at_the_highest_rate(record: Record, methods: Sequence[str]) -> Finding:
    """Return gains over LoRA in validation accuracy at the highest rate of the grid."""
    highest = max(record["settings"]["rates"])
    rows: Rows = [row for row in record["runs"] if row["lr"] == highest]
    effects = tuple(
        gain(name, paired(rows, name, LORA, "accuracy"), telling=TELLING) for name in methods
    )
    return Finding(
        effects,
        f"points of KMNIST accuracy over {LORA}, at a rate of {highest:g}",
        over_seeds(len({row["seed"] for row in rows})),
    )


def forgets_less(record: Record) -> Finding:
    """Return what LoRA keeps over full fine-tuning: at the chosen rates, and at one accuracy."""
    pairs = {
        "test, each at its chosen rate": (record["final"], "test_kept"),
        "at the same accuracy, 3 points below LoRA's best": (record["measured"], "kept"),
    }
    effects = tuple(
        gain(label, paired(rows, LORA, FULL, quantity), telling=TELLING)
        for label, (rows, quantity) in pairs.items()
    )
    counts = [len({row["seed"] for row in rows}) for rows, _ in pairs.values()]
    return Finding(
        effects,
        "points of Fashion-MNIST kept over full fine-tuning",
        f"95 % over {counts[0]} and {counts[1]} seeds, Student's t, paired",
    )


_VISION = ("vision-transfer.json", "python -m experiments.vision_transfer")
_KEPT = "points of Fashion-MNIST kept over LoRA, where KMNIST is 3 points below LoRA's best"
_NEW = f"points of KMNIST test accuracy over {LORA}"

TRANSFER = (
    Claim(
        "bound-range",
        "A bound on the norm of the update makes more learning rates usable than LoRA has.",
        "Bini et al., 2503.18225; Wang et al., 2501.19050",
        *_VISION,
        partial(
            over_lora,
            methods=BALLS,
            quantity="width",
            unit="decades of rates within 1 point of the best one, over LoRA's",
            telling=STEP,
        ),
    ),
    Claim(
        "bound-range-common",
        "With a bound on the norm, more learning rates come near LoRA's best accuracy.",
        "Bini et al., 2503.18225; Wang et al., 2501.19050",
        *_VISION,
        partial(
            over_lora,
            methods=BALLS,
            quantity="common_width",
            unit="decades of rates within 3 points of LoRA's best, over LoRA's",
            telling=STEP,
        ),
    ),
    Claim(
        "bound-collapse",
        "With a bound on the norm, too high a learning rate does less harm than with LoRA.",
        "Bini et al., 2503.18225; Wang et al., 2501.19050",
        *_VISION,
        partial(at_the_highest_rate, methods=BALLS),
    ),
    Claim(
        "bound-front",
        "With a bound on the norm, less is forgotten at the same accuracy.",
        "Wang et al., 2501.19050",
        *_VISION,
        partial(over_lora, methods=BALLS, quantity="kept", unit=_KEPT, telling=TELLING),
    ),
    Claim(
        "lora-forgets-less",
        "LoRA forgets less than full fine-tuning.",
        "Biderman et al., 2405.09673",
        *_VISION,
        forgets_less,
    ),
    Claim(
        "dora",
        "LoRA with trained lengths of rows (DoRA) is more accurate than LoRA.",
        "Liu et al., 2402.09353",
        *_VISION,
        partial(
            gains_in_test, methods=("DoRA", "DoRA of PEFT"), quantity="test_accuracy", unit=_NEW
        ),
    ),
    Claim(
        "frozen-spaces",
        "With as many trained numbers, NoRA and LoRA-XS are as accurate as LoRA.",
        "Lin et al., 2408.10280; Balazy et al., 2405.17604",
        *_VISION,
        partial(
            gains_in_test,
            methods=("NoRA", "LoRA-XS"),
            quantity="test_accuracy",
            unit=_NEW,
            margin=MARGIN,
        ),
    ),
    Claim(
        "oft-forgets-less",
        "Rotations of the weight (OFT) forget less than LoRA at the same accuracy.",
        "Qiu et al., 2306.07280",
        *_VISION,
        partial(over_lora, methods=("OFT of PEFT",), quantity="kept", unit=_KEPT, telling=TELLING),
    ),
)
