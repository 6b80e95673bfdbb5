"""Intruder dimensions and forgetting: LoRA, bounded updates and full fine-tuning of a transformer.

``python -m experiments.intruders`` writes a table, a figure and a JSON record. A sweep, in which
nothing is chosen: every configuration is shown, with its test accuracy.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from experiments.intruders_runs import (
    FACTORS,
    SETTINGS,
    STEPS,
    WIDTH,
    Outcome,
    bases,
    pretrained,
    train,
)
from experiments.panels import column, save
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from experiments.training_vit import Split, digits, loss_and_accuracy
from lowrank_opt.merging import intruder_free_radius

SEEDS = (0, 1, 2)
COLOURS = {"LoRA": "#0072B2", "NBLoRA": "#D55E00", "DeLoRA": "#009E73", "all weights": "#CC79A7"}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's correlation; NaN for a constant.

    Examples
    --------
    >>> round(rank_correlation([1, 2, 3], [1, 9, 8]), 6)
    0.5
    """
    from scipy.stats import spearmanr

    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)


def sweep_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return one row for each configuration."""
    rows: list[list[str]] = []
    for setting in dict.fromkeys(o.setting for o in outcomes):
        own = [o for o in outcomes if o.setting == setting]
        rows.append(
            [
                setting.name,
                f"{setting.lr:g}",
                mean_and_spread([o.turned_accuracy for o in own], digits=3),
                mean_and_spread([o.upright_loss for o in own], digits=2),
                mean_and_spread([float(o.intruders) for o in own], digits=1),
                f"{statistics.fmean(o.by_span for o in own):.1f}",
                f"{statistics.fmean(o.relative_size for o in own):.2f}",
            ]
        )
    return rows


SWEEP_HEADER = [
    "update",
    "lr",
    "turned accuracy",
    "upright loss",
    "intruders of 80",
    "by span",
    "‖dW‖/‖W0‖",
]
CHANGE_HEADER = ["change", "factor", "upright loss", "turned loss", "turned accuracy", "norm"]


def change_rows(outcomes: Sequence[Outcome], method: str = "LoRA") -> list[list[str]]:
    """Return means over the runs of a method that have intruders, relative to no change."""
    runs = [o.changes for o in outcomes if o.setting.method == method and o.changes]
    rows: list[list[str]] = []
    for position in range(len(runs[0]) if runs else 0):
        now = [run[position] for run in runs]
        first = [run[0] for run in runs]
        rows.append(
            [
                now[0].kind,
                f"{now[0].factor:g}",
                _median_ratio([x.upright_loss for x in now], [x.upright_loss for x in first]),
                _median_ratio([x.turned_loss for x in now], [x.turned_loss for x in first]),
                f"{statistics.fmean(x.turned_accuracy for x in now):.3f}",
                _median_ratio([x.frobenius for x in now], [x.frobenius for x in first]),
            ]
        )
    return rows


def _median_ratio(x: Sequence[float], y: Sequence[float]) -> str:
    return f"x {statistics.median(a / b for a, b in zip(x, y, strict=True)):.3f}"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw forgetting against the number of intruders, and against the size of the update."""
    figure, panels = column(2)
    for method, colour in COLOURS.items():
        own = [o for o in outcomes if o.setting.method == method]
        loss = [o.upright_loss for o in own]
        for ax, x in zip(
            panels, ([o.intruders for o in own], [o.frobenius for o in own]), strict=True
        ):
            ax.plot(x, loss, "o", color=colour, ms=4, alpha=0.8, label=method)
    panels[0].set(xlabel="intruder dimensions of 80", yscale="log")
    panels[1].set(xlabel="Frobenius norm of the update", xscale="log")
    for ax in panels:
        ax.set_ylabel("loss on upright digits")
        ax.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        ax.minorticks_off()
    save(figure, panels[0], path)


def learned(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the runs that did not diverge: those that know half of the turned digits.

    A diverged run knows nothing of either task, and its loss is that of a guess, however large
    its update is.
    """
    return [o for o in outcomes if o.turned_accuracy > 0.5]


def _partial(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float:
    """Return the rank correlation of x and y when that of both with a third is taken out."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, given), rank_correlation(y, given)
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / left**0.5 if left > 0 else math.nan


def correlations(outcomes: Sequence[Outcome]) -> dict[str, Json]:
    """Return rank correlations of forgetting with counts and with sizes, for groups of runs."""
    found: dict[str, Json] = {}
    for name, own in (
        ("all runs", list(outcomes)),
        ("learned", learned(outcomes)),
        ("LoRA, learned", [o for o in learned(outcomes) if o.setting.method == "LoRA"]),
        ("bounded", [o for o in outcomes if o.setting.radius]),
    ):
        loss, size = [o.upright_loss for o in own], [o.frobenius for o in own]
        count = [float(o.intruders) for o in own]
        measured = {
            "intruders": rank_correlation(count, loss),
            "by span": rank_correlation([o.by_span for o in own], loss),
            "Frobenius norm": rank_correlation(size, loss),
            "intruders, given the norm": _partial(count, loss, size),
            "Frobenius norm, given the intruders": _partial(size, loss, count),
        }
        # A constant has no correlation, and JSON no NaN.
        finite = {k: None if math.isnan(x) else x for k, x in measured.items()}
        found[name] = {"runs": len(own), **finite}
    return found


def study(session: Session) -> None:
    """Run the experiment."""
    seeds, steps, every = (SEEDS[:1], 3, 7) if session.smoke else (SEEDS, STEPS, 1)
    calls = [partial(train, k, s, steps) for k in range(0, len(SETTINGS), every) for s in seeds]
    outcomes = session.run(calls, "runs")
    rows, changed = sweep_rows(outcomes), change_rows(learned(outcomes))
    print(text_table(SWEEP_HEADER, rows), text_table(CHANGE_HEADER, changed), sep="\n\n")
    draw(outcomes, session.folder / "intruders.png")
    before = loss_and_accuracy(pretrained(), Split(*digits()))
    radii: dict[str, Json] = {
        name: {"largest": float(b.values[0]), "radius": intruder_free_radius(b)}
        for name, b in bases().items()
    }
    session.write(
        "intruders.json",
        settings={
            "steps": steps,
            "width": WIDTH,
            "seeds": list(seeds),
            "factors": [*FACTORS],
        },
        upright_loss_and_accuracy_at_start=[*before],
        intruder_free_radius=radii,
        correlations=correlations(outcomes),
        runs=[asdict(o) for o in outcomes],
        sweep=markdown_table(SWEEP_HEADER, rows),
        changes=markdown_table(CHANGE_HEADER, changed),
    )


def _ready() -> None:
    """Train the network that is adapted."""
    bases()


main = experiment(study, __doc__, ready=_ready)


if __name__ == "__main__":
    sys.exit(main())
