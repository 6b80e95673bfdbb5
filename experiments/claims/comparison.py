"""Claims on accuracy and forgetting in a causal language model, beside PEFT's methods."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from experiments.claims.finding import Claim, Finding, Record, Rows, gain, over_seeds, paired
from experiments.claims.transfer import MARGIN, gains_in_test, over_lora
from experiments.transfer.methods import LORA

# Nats a token: in PEFT's own table methods forget 0.02 to 0.22.
TELLING = 0.01
_ASKED = f"A gain that would tell: {TELLING:g} nats."


def bounded(record: Record) -> Sequence[str]:
    """Return the updates that declare a bound on what they do to a weight."""
    rows: Rows = record["runs"]
    return [*dict.fromkeys(row["method"] for row in rows if row["holds"] is not None)]


def rotations(record: Record) -> Sequence[str]:
    """Return orthogonal fine-tuning, bounded here and as PEFT has it."""
    return [name for name in (*bounded(record), "OFT of PEFT") if name.lower().startswith("oft")]


def at_equal_accuracy(methods: Callable[[Record], Sequence[str]]) -> Callable[[Record], Finding]:
    """Return what measures forgetting where answers are three points below LoRA's best."""

    def measure(record: Record) -> Finding:
        unit = f"nats a token kept over LoRA, 3 points below its best accuracy. {_ASKED}"
        found = over_lora(record, methods(record), "kept", unit=unit, telling=TELLING)
        return _by_several(found)

    return measure


def at_the_best_rate(record: Record) -> Finding:
    """Return what bounded updates keep over LoRA in the test, each at its best rate."""
    rows: Rows = record["final"]
    found = {name: paired(rows, name, LORA, "test_kept") for name in bounded(record)}
    effects = [gain(name, values, telling=TELLING) for name, values in found.items() if values]
    seeds = len({row["seed"] for row in rows})
    unit = "nats a token kept over LoRA"
    return _by_several(Finding(tuple(effects), unit, over_seeds(seeds), remark=_ASKED))


def _by_several(finding: Finding) -> Finding:
    """Return a finding whose effects of one seed, one draw of some questions, are undecided."""
    decided = [e if e.has_interval else replace(e, holds=None) for e in finding.effects]
    return replace(finding, effects=tuple(decided))


def as_accurate(record: Record) -> Finding:
    """Return whether bounded updates answer as well as LoRA in the test."""
    unit = f"points of accuracy over {LORA}, each at its best rate"
    return gains_in_test(record, bounded(record), "test_accuracy", unit=unit, margin=MARGIN)


_RECORD = ("peft-comparison.json", "make peft-comparison")

COMPARISON = (
    Claim(
        "causal-bound-front",
        "In a language model, a bound on the norm forgets less at the same accuracy.",
        "Wang et al., 2501.19050",
        *_RECORD,
        at_equal_accuracy(bounded),
    ),
    Claim(
        "causal-bound-test",
        "In a language model, bounded updates forget less than LoRA, each at its best rate.",
        "Wang et al., 2501.19050; Bini et al., 2503.18225",
        *_RECORD,
        at_the_best_rate,
    ),
    Claim(
        "causal-bound-accuracy",
        "In a language model, bounded updates are as accurate as LoRA, each at its best rate.",
        "Wang et al., 2501.19050; Bini et al., 2503.18225",
        *_RECORD,
        as_accurate,
    ),
    Claim(
        "causal-oft",
        "In a language model, rotations of the weight forget less at the same accuracy than LoRA.",
        "Qiu et al., 2306.07280; 2605.28819",
        *_RECORD,
        at_equal_accuracy(rotations),
    ),
    Claim(
        "causal-reasoning",
        "On questions of science (ARC-Easy), bounded updates forget less at the same accuracy.",
        "Wang et al., 2501.19050",
        "peft-comparison-arc.json",
        "python -m experiments.peft_comparison --profile gpu --model FOLDER --questions ARC",
        at_equal_accuracy(bounded),
    ),
)
