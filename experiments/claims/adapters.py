"""Claims on training methods for adapters."""

import math
import statistics
from functools import partial
from typing import Any

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

LORA, EVERYTHING = "Factored, AdamW (LoRA)", "AdamW, all weights"
# What tells for losses is a twentieth; methods are equally accurate if a point apart at most.
SAME, MARGIN = 0.05, 1.0


def accuracy_gain(
    record: Record, methods: tuple[str, ...], *, beside: tuple[str, ...] = (), reference: str = LORA
) -> Finding:
    """Return gains of test accuracy over a reference, in points; `beside` are shown only."""
    rows: Rows = record["final"]
    effects = tuple(
        gain(
            name,
            [100 * x for x in paired(rows, name, reference, "test_accuracy")],
            telling=TELLING,
            beside=name not in methods,
        )
        for name in (*methods, *beside)
    )
    seeds = len({row["seed"] for row in rows})
    return Finding(effects, f"points of test accuracy over {reference}", over_seeds(seeds))


def not_worse(record: Record, method: str, reference: str) -> Finding:
    """Return whether a method is at most a point of accuracy behind; undecided if it may be."""
    rows: Rows = record["final"]
    gains = [100 * x for x in paired(rows, method, reference, "test_accuracy")]
    mean, low, high = mean_interval(gains)
    decided = low > -MARGIN or high < -MARGIN
    effect = Effect(method, mean, low, high, low > -MARGIN if decided else None)
    return Finding(
        (effect,),
        f"points of test accuracy over {reference}",
        over_seeds(len(gains)),
        remark=f"Asked: at most {MARGIN:g} point behind.",
    )


def flatter(record: Record) -> Finding:
    """Return what perturbed training takes off the validation loss, of two kinds of update."""
    rows: Rows = record["final"]
    pairs = (
        ("FlatPerturbation, AdamW", LORA),
        ("NBLoRA, FlatPerturbation", "NBLoRA, AdamW"),
    )
    plain = statistics.fmean(r["validation_loss"] for r in rows if r["method"] == LORA)
    effects = tuple(
        gain(
            ours,
            [-x for x in paired(rows, ours, theirs, "validation_loss")],
            telling=SAME * plain,
        )
        for ours, theirs in pairs
    )
    seeds = len({row["seed"] for row in rows})
    return Finding(effects, "validation loss saved", over_seeds(seeds))


def invariance(record: Record) -> Finding:
    """Return how much another scale of the factors changes the loss, at the rate chosen for 1."""
    rows: Rows = [*record["final"], *record["scaled"]]
    at = {(r["method"], r["scale"], r["seed"]): float(r["validation_loss"]) for r in rows}
    scaled = [key for key in at if key[1] != 1.0]
    claimed = ("ScaledGD", "LoRARite", "LoRAProFull", "SpectralDescent")

    def effect(name: str) -> Effect:
        changes = [
            math.exp(abs(math.log(at[key] / at[name, 1.0, key[2]])))
            for key in scaled
            if key[0] == name
        ]
        worst, holds = max(changes), max(changes) <= 1 + SAME
        return Effect(name, worst, min(changes), worst, holds, name not in claimed)

    return Finding(
        tuple(effect(name) for name in (*claimed, LORA)),
        "times the loss, the worst of right factors x 0.1 and x 10",
        "from the least to the worst of two scales and two seeds",
        1.0,
        f"Asked: at most {SAME:.0%} of the loss. One that diverges ends as a guess.",
    )


def conditioning(record: Record) -> Finding:
    """Return the errors of factorisations at condition number 100, each at its best rate."""
    rows: Rows = record["factors"]

    def effect(name: str) -> Effect:
        errors = [
            float(r["error"])
            for r in rows
            if (r["optimizer"], r["condition"], r["imbalance"]) == (name, 100.0, 1.0)
        ]
        best = min(x for x in errors if x == x)
        return Effect(name, best, holds=best < 1e-8, beside=name != "ScaledGD")

    return Finding(
        tuple(effect(name) for name in ("ScaledGD", "LoRAPro", "Adam", "gradient descent")),
        "relative error after 300 steps",
        "one run for each setting: the record has no interval over seeds",
        1.0,
        "Asked: an error below 1e-8 at condition number 100.",
        logarithmic=True,
    )


def one_rate(record: Record) -> Finding:
    """Return what one rate for 24 settings costs over each setting's own best rate."""
    rows: Rows = record["runs"]
    common: dict[str, float] = record["common rates"]
    settings = sorted({(r["rank"], r["width"], r["scale"]) for r in rows})
    seeds = sorted({r["seed"] for r in rows})

    def excess(name: str) -> dict[tuple[Any, ...], list[float]]:
        found: dict[tuple[Any, ...], list[float]] = {}
        for setting in settings:
            own = {
                (r["lr"], r["seed"]): float(r["loss"])
                for r in rows
                if r["optimizer"] == name and (r["rank"], r["width"], r["scale"]) == setting
            }
            rates = {lr for lr, _ in own}
            best = min(rates, key=lambda lr: _mean([own[lr, s] for s in seeds]))
            found[setting] = [100 * (own[common[name], s] / own[best, s] - 1) for s in seeds]
        return found

    ours, theirs = excess("SpectralDescent"), excess("AdamW")
    means = [
        [statistics.fmean(x[s][k] for s in settings) for x in (ours, theirs)]
        for k in range(len(seeds))
    ]
    saved = gain(
        "AdamW's loss less SpectralDescent's, mean of all settings", [b - a for a, b in means]
    )
    worst = max(settings, key=lambda s: statistics.fmean(ours[s]))
    mean, low, high = mean_interval(ours[worst])
    name = "rank {}, width {}, factors x {:g}".format(*worst)
    return Finding(
        (
            saved,
            Effect(
                f"SpectralDescent, its worst setting: {name}", mean, low, high, high < 100 * SAME
            ),
        ),
        "per cent of the loss at the best rate",
        over_seeds(len(seeds)),
        remark=f"Asked: less lost than by AdamW, and at most {SAME:.0%} lost in any setting.",
    )


def _mean(values: list[float]) -> float:
    return statistics.fmean(x if x == x else math.inf for x in values)


_TRAINING = ("training-methods.json", "python -m experiments.training_methods")


def _better(
    name: str, text: str, source: str, *methods: str, beside: tuple[str, ...] = ()
) -> Claim:
    return Claim(
        name, text, source, *_TRAINING, partial(accuracy_gain, methods=methods, beside=beside)
    )


TRAINING = (
    Claim(
        "lora-as-full",
        "LoRA is as accurate as training all weights.",
        "Hu et al., 2106.09685",
        *_TRAINING,
        partial(not_worse, method=LORA, reference=EVERYTHING),
    ),
    Claim(
        "galore-as-full",
        "Adam in gradient subspaces (GaLore) is as accurate as AdamW on all weights.",
        "Zhao et al., 2403.03507",
        *_TRAINING,
        partial(not_worse, method="GaLore with residual, all weights", reference=EVERYTHING),
    ),
    _better(
        "lora-plus",
        "A higher rate for left factors (LoRA+) is more accurate than one rate.",
        "Hayou et al., 2402.12354",
        "LoRA+ (ratio 4)",
    ),
    _better(
        "lora-pro",
        "Gradients corrected towards the full one (LoRA-Pro) are more accurate than LoRA's.",
        "Wang et al., 2407.18242",
        "LoRAProFull",
        beside=("LoRAProFull, trust 0.03", "LoRAProAdamW", "LoRAPro, momentum, normalized"),
    ),
    _better(
        "lora-rite",
        "Invariant matrix preconditioning (LoRA-RITE) is more accurate than Adam.",
        "Yen et al., 2410.20625",
        "LoRARite",
    ),
    _better(
        "chain-of-lora",
        "A chain of LoRA updates is more accurate than one of the same steps.",
        "Xia et al., 2401.04151",
        "ChainOfLowRank of two, AdamW",
    ),
    _better(
        "adalora",
        "Ranks allocated by sensitivity (AdaLoRA) are more accurate than one rank for all.",
        "Zhang et al., 2303.10512",
        "RankAllocator, AdaLoRA, AdamW",
    ),
    _better(
        "dynamic-rank",
        "Ranks allocated by magnitude (dynamic-rank DoRA) are more accurate than one rank for all.",
        "Mao et al., 2405.17357",
        "RankAllocator, dynamic rank, AdamW",
    ),
    Claim(
        "flat-lora",
        "Training a perturbed weight (Flat-LoRA) generalises better than training the weight.",
        "Li et al., 2409.14396",
        *_TRAINING,
        flatter,
    ),
    Claim(
        "invariance",
        "Transformation-invariant optimizers train alike from factors of any scale.",
        "Yen et al., 2410.20625; Tong et al., 2005.08898; 2606.12921",
        *_TRAINING,
        invariance,
    ),
    Claim(
        "scaled-gd",
        "Scaled gradient descent converges at a rate that does not depend on the condition number.",
        "Tong et al., 2005.08898",
        *_TRAINING,
        conditioning,
    ),
    Claim(
        "one-rate",
        "One learning rate of spectral descent (LoRA-Muon) does for all ranks, widths and scales.",
        "2606.12921",
        "spectral-rates.json",
        "python -m experiments.spectral_rates",
        one_rate,
    ),
)
