"""Claims on forgetting and high rates when a sentence encoder is adapted."""

from collections.abc import Sequence
from functools import partial

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
from experiments.claims.transfer import MARGIN, gains_in_test
from experiments.transfer.methods import LORA

COMPLEMENT, REWOUND = "LoRA in a Complement", f"{LORA}, rewound"
BALLS = ("NBLoRA, radius 2", "DeLoRA, radius 8", "DeLoRA of PEFT")
_KEPT = f"points of 100 x rank correlation on STS-B kept over {LORA}"


def present(record: Record, part: str, methods: Sequence[str]) -> list[str]:
    """Return those methods that a part of the record has."""
    names = {row["method"] for row in record[part]}
    return [name for name in methods if name in names]


def beyond(record: Record) -> Finding:
    """Return gains over LoRA in test accuracy, each at ten times its chosen rate."""
    rows: Rows = record["beyond"]
    found = {n: paired(rows, n, LORA, "test_accuracy") for n in present(record, "beyond", BALLS)}
    unit = f"points of test accuracy over {LORA}, each at ten times its best rate"
    effects = tuple(gain(name, values, telling=TELLING) for name, values in found.items())
    return Finding(effects, unit, over_seeds(len({row["seed"] for row in rows})))


def kept(record: Record, methods: Sequence[str]) -> Finding:
    """Return what is kept over LoRA in the test, each at its chosen rate."""
    unit = f"{_KEPT}, each at its best rate"
    return gains_in_test(record, present(record, "final", methods), "test_kept", unit=unit)


def kept_at_equal_accuracy(record: Record) -> Finding:
    """Return what is kept over LoRA on the ways back to zero, at one accuracy."""
    rows: Rows = [row for row in record["rewound"] if row["kept"] is not None]
    names = [name for name in present(record, "rewound", (*BALLS, COMPLEMENT))]
    found = {name: paired(rows, name, LORA, "kept") for name in names}
    effects = tuple(gain(n, values, telling=TELLING) for n, values in found.items() if values)
    unit = f"{_KEPT}, on the way to zero, 3 points below LoRA's best accuracy"
    seeds = len({row["seed"] for row in record["rewound"]})
    return Finding(effects, unit, over_seeds(seeds))


def costs_nothing(record: Record, method: str) -> Finding:
    """Return whether a method is at most a point of test accuracy behind LoRA."""
    unit = f"points of test accuracy over {LORA}, each at its best rate"
    return gains_in_test(record, (method,), "test_accuracy", unit=unit, margin=MARGIN)


_RECORD = ("language-transfer-trec.json", "python -m experiments.language_transfer")

LANGUAGE = (
    Claim(
        "language-collapse",
        "In a sentence encoder, a rate ten times too high harms bounded updates less than LoRA.",
        "Bini et al., 2503.18225; Wang et al., 2501.19050",
        *_RECORD,
        beyond,
    ),
    Claim(
        "language-kept",
        "In a sentence encoder, bounded updates forget less than LoRA, each at its best rate.",
        "Bini et al., 2503.18225; Wang et al., 2501.19050",
        *_RECORD,
        partial(kept, methods=BALLS),
    ),
    Claim(
        "language-front",
        "In a sentence encoder, bounded updates forget less than LoRA at the same accuracy.",
        "Wang et al., 2501.19050",
        *_RECORD,
        kept_at_equal_accuracy,
    ),
    Claim(
        "language-rewind",
        "A trained LoRA that is taken back towards zero as far as validation asks forgets less.",
        "this library",
        *_RECORD,
        partial(kept, methods=(REWOUND,)),
    ),
    Claim(
        "language-complement",
        "LoRA that does not act on leading inputs of the old task (LoRA-Null) forgets less.",
        "2503.02659",
        *_RECORD,
        partial(kept, methods=(COMPLEMENT,)),
    ),
    Claim(
        "language-complement-accuracy",
        "LoRA that does not act on leading inputs of the old task is as accurate as LoRA.",
        "2503.02659",
        *_RECORD,
        partial(costs_nothing, method=COMPLEMENT),
    ),
)
