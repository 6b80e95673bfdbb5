"""Six clients with different pictures of digits train one adapter: every rule of aggregation.

``python -m experiments.federated_digits`` prints accuracy, the aggregation bias of each round and
the traffic, and writes a table, a figure and a JSON record. Each rule takes the learning rate with
the best validation accuracy over the tuning seeds; test images are looked at once, with that rate.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from experiments.federated_task import BASE, Federation, Rule, federation
from experiments.parallel import Workers
from experiments.records import Json, environment, prepare_folder, write_record
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.errors import TargetError
from lowrank_opt.merging import Aggregate

GRID = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
LOCAL_STEPS = (20, 80)
ROUNDS = 20
TUNING_SEEDS, SEEDS = (0, 1), (0, 1, 2, 3, 4)


RULES = (
    Rule("FedIT", "fedit"),
    Rule("FedIT, aligned", "fedit", align=True),
    Rule("FFA-LoRA", "ffa"),
    Rule("FLoRA", "flora"),
    Rule("FlexLoRA", "flexlora"),
    Rule("FedEx-LoRA", "fedex"),
    Rule("LoRA-FAIR, 0", "fair", regularization=0.0),
    Rule("LoRA-FAIR, 0.01", "fair"),
    Rule("LoRA-FAIR, cosine, 0.01", "fair", objective="cosine"),
)


@dataclass(frozen=True)
class Outcome:
    """One federated training: accuracies are means over the six domains, 0 if it diverged."""

    rule: str
    local_steps: int
    lr: float
    seed: int
    validation: float
    test: float | None
    biases: list[float]
    floats_up: int
    floats_down: int


def run(index: int, local_steps: int, lr: float, seed: int, *, test: bool) -> Outcome:
    """Train all rounds with one rule."""
    rule, state = RULES[index], Federation(federation(seed), seed)
    rounds: list[dict[str, Aggregate]] = []
    with suppress(TargetError):  # clients that diverged have no average
        for _ in range(ROUNDS):
            state.train(local_steps, lr, frozen_right=rule.method == "ffa")
            rounds.append(state.aggregate(rule))
    converged = len(rounds) == ROUNDS
    return Outcome(
        rule.name,
        local_steps,
        lr,
        seed,
        state.accuracy("validation") if converged else 0.0,
        state.accuracy("test") if converged and test else None,
        [state.bias(results) for results in rounds],
        sum(max(r.floats_up) for results in rounds for r in results.values()),
        sum(max(r.floats_down) for results in rounds for r in results.values()),
    )


def best_rate(outcomes: Sequence[Outcome]) -> float:
    """Return the learning rate with the best validation accuracy, averaged over seeds."""

    def mean(lr: float) -> float:
        return statistics.fmean(o.validation for o in outcomes if o.lr == lr)

    return max(sorted({o.lr for o in outcomes}), key=mean)


def table(final: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one for each rule and number of local steps."""
    header = ["rule", "local steps", "best lr", "validation", "test accuracy"]
    header += ["bias, first round", "bias, last round", "sent", "received"]
    rows: list[list[str]] = []
    for steps in sorted({o.local_steps for o in final}):
        for rule in RULES:
            own = [o for o in final if (o.rule, o.local_steps) == (rule.name, steps)]
            rows += [_row(own)] if own else []
    return header, rows


def _row(own: Sequence[Outcome]) -> list[str]:
    first = own[0]
    return [
        first.rule,
        str(first.local_steps),
        f"{first.lr:g}",
        mean_and_spread([100 * o.validation for o in own], digits=1),
        mean_and_spread([100 * o.test for o in own if o.test is not None], digits=1),
        f"{statistics.fmean(o.biases[0] for o in own):.3f}",
        f"{statistics.fmean(o.biases[-1] for o in own):.3f}",
        f"{first.floats_up // ROUNDS:,}",
        f"{first.floats_down // ROUNDS:,}",
    ]


def print_biases(final: Sequence[Outcome]) -> None:
    """Print the mean bias of each round."""
    for steps in sorted({o.local_steps for o in final}):
        for rule in RULES:
            own = [o for o in final if (o.rule, o.local_steps) == (rule.name, steps)]
            means = [statistics.fmean(x) for x in zip(*(o.biases for o in own), strict=True)]
            print(f"{rule.name}, {steps} steps: bias", " ".join(f"{b:.3f}" for b in means))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    parser.add_argument("--quick", action="store_true", help="two rates, one seed, few steps")
    options = parser.parse_args(arguments)
    folder = prepare_folder(options.out)
    grid, tuning, seeds, local = GRID, TUNING_SEEDS, SEEDS, LOCAL_STEPS
    if options.quick:
        grid, tuning, seeds, local = (0.1, 0.4), SEEDS[:1], SEEDS[:1], (20,)
    cases = [(k, steps) for k in range(len(RULES)) for steps in local]
    with Workers(_ready) as workers:
        tuned = workers.run(
            [
                partial(run, k, steps, lr, seed, test=False)
                for k, steps in cases
                for lr in grid
                for seed in tuning
            ],
            "learning rates",
        )
        rates = {
            (k, n): best_rate([o for o in tuned if (o.rule, o.local_steps) == (RULES[k].name, n)])
            for k, n in cases
        }
        final = workers.run(
            [
                partial(run, k, steps, rates[k, steps], seed, test=True)
                for k, steps in cases
                for seed in seeds
            ],
            "test",
        )
    before = [Federation(federation(seed), seed).accuracy("test") for seed in seeds]
    header, rows = table(final)
    print_biases(final)
    print(text_table(header, rows))
    print("no adaptation:", mean_and_spread([100 * x for x in before], digits=1))
    record: dict[str, Json] = {
        "environment": environment(),
        "settings": {"rounds": ROUNDS, "grid": list(grid), "seeds": list(seeds), "base": BASE},
        "tuning": [asdict(o) for o in tuned],
        "final": [asdict(o) for o in final],
        "no_adaptation": list(before),
        "table": markdown_table(header, rows),
    }
    write_record(folder / "federated.json", record)
    return 0


def _ready() -> None:
    federation(0)


if __name__ == "__main__":
    sys.exit(main())
