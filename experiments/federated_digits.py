"""Six clients with different pictures of digits train one adapter: every rule of aggregation.

``python -m experiments.federated_digits`` prints accuracy, the aggregation bias of each round and
the traffic, and writes a table, a figure and a JSON record. Each rule takes the learning rate with
the best validation accuracy over the tuning seeds; test images are looked at once, with that rate.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from experiments.federated_task import BASE, Federation, Rule, federation
from experiments.panels import column, save
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.errors import TargetError
from lowrank_opt.merging import Aggregate

GRID = (0.2, 0.4, 0.8, 1.6, 3.2)
LOCAL_STEPS = (20, 80)
ROUNDS = 20
TUNING_SEEDS, SEEDS = (0, 1), (0, 1, 2, 3)

Case = tuple[int, int]


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


def run(
    index: int, local_steps: int, lr: float, seed: int, *, test: bool, rounds: int = ROUNDS
) -> Outcome:
    """Train all rounds with one rule."""
    rule, state = RULES[index], Federation(federation(seed), seed)
    done: list[dict[str, Aggregate]] = []
    with suppress(TargetError):  # clients that diverged have no average
        for _ in range(rounds):
            state.train(local_steps, lr, frozen_right=rule.method == "ffa")
            done.append(state.aggregate(rule))
    converged = len(done) == rounds
    return Outcome(
        rule.name,
        local_steps,
        lr,
        seed,
        state.accuracy("validation") if converged else 0.0,
        state.accuracy("test") if converged and test else None,
        [state.bias(results) for results in done],
        sum(max(r.floats_up) for results in done for r in results.values()),
        sum(max(r.floats_down) for results in done for r in results.values()),
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
        f"{first.floats_up // len(first.biases):,}",
        f"{first.floats_down // len(first.biases):,}",
    ]


def mean_biases(outcomes: Sequence[Outcome], rule: str, local_steps: int) -> list[float]:
    """Return the bias of each round, averaged over seeds."""
    own = [o.biases for o in outcomes if (o.rule, o.local_steps) == (rule, local_steps)]
    return [statistics.fmean(x) for x in zip(*own, strict=True)]


def draw(final: Sequence[Outcome], path: Path) -> None:
    """Draw the bias of each round, one panel for each number of local steps."""
    steps = sorted({o.local_steps for o in final})
    figure, panels = column(len(steps))
    for ax, local in zip(panels, steps, strict=True):
        for k, rule in enumerate(r for r in RULES if r.method in ("fedit", "flexlora", "fair")):
            biases = mean_biases(final, rule.name, local)
            ax.semilogy(
                range(1, len(biases) + 1), biases, marker="o+vsDx"[k % 6], ms=4, label=rule.name
            )
        ax.set_title(f"{local} local steps", fontsize=9)
        ax.set_ylabel("relative bias")
    panels[-1].set_xlabel("round")
    save(figure, panels[0], path)


def study(session: Session) -> None:
    """Run the experiment."""
    grid, tuning, seeds, local, rounds = GRID, TUNING_SEEDS, SEEDS, LOCAL_STEPS, ROUNDS
    if session.smoke:
        grid, tuning, seeds, local, rounds = (0.4,), SEEDS[:1], SEEDS[:1], (5,), 2
    cases = [(k, steps) for k in range(len(RULES)) for steps in local]
    tried = [
        partial(run, *case, lr, seed, test=False, rounds=rounds)
        for case in cases
        for lr in grid
        for seed in tuning
    ]
    tuned = session.run(tried, "learning rates")
    chosen = [
        partial(run, *case, _rate(tuned, case), seed, test=True, rounds=rounds)
        for case in cases
        for seed in seeds
    ]
    final = session.run(chosen, "test")
    before = [Federation(federation(seed), seed).accuracy("test") for seed in seeds]
    for steps in local:
        for rule in RULES:
            biases = " ".join(f"{b:.3f}" for b in mean_biases(final, rule.name, steps))
            print(f"{rule.name}, {steps} steps: bias {biases}")
    header, rows = table(final)
    print(text_table(header, rows))
    print("no adaptation:", mean_and_spread([100 * x for x in before], digits=1))
    session.write(
        "federated.json",
        settings={"rounds": rounds, "grid": list(grid), "seeds": list(seeds), "base": BASE},
        tuning=[asdict(o) for o in tuned],
        final=[asdict(o) for o in final],
        no_adaptation=list(before),
        table=markdown_table(header, rows),
    )
    draw(final, session.folder / "federated.png")


def _rate(tuned: Sequence[Outcome], case: Case) -> float:
    rule, steps = RULES[case[0]].name, case[1]
    return best_rate([o for o in tuned if (o.rule, o.local_steps) == (rule, steps)])


def _ready() -> None:
    federation(0)


main = experiment(study, __doc__, ready=_ready)

if __name__ == "__main__":
    sys.exit(main())
