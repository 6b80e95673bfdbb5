"""Tables and the figure of the comparison of training methods; differences are paired by seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.tables import mean_and_spread

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Outcome:
    """One training run; `scale` is what right factors were multiplied by at the start."""

    method: str
    lr: float
    seed: int
    scale: float
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    test_accuracy: float
    holds: bool
    cpu_ms: float


def best_rate(outcomes: Sequence[Outcome]) -> float:
    """Return the learning rate with the least validation loss, averaged over seeds."""

    def mean_loss(lr: float) -> float:
        # A run that diverged has no finite loss: its rate is never the best one.
        losses = [o.validation_loss for o in outcomes if o.lr == lr]
        return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf

    return min({o.lr for o in outcomes}, key=mean_loss)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for one value.

    Examples
    --------
    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def differences(
    outcomes: Sequence[Outcome], method: str, reference: str, quantity: str
) -> list[float]:
    """Return ``method - reference`` for each seed that both have."""
    first, second = (
        {o.seed: float(getattr(o, quantity)) for o in outcomes if o.method == name}
        for name in (method, reference)
    )
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def _signed(values: Sequence[float], digits: int = 3) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:+.{digits}f} ± {error:.{digits}f}"


def table(final: Sequence[Outcome], names: Sequence[str]) -> Table:
    """Return header and rows, one for each method; the first one is the reference."""
    header = ["method", "best lr", "training loss", "validation loss", "minus AdamW"]
    header += ["test accuracy", "minus AdamW", "bounds hold", "CPU ms a step"]
    rows: list[list[str]] = []
    for name in names:
        own = [o for o in final if o.method == name]
        if own:
            rows.append([*_quality(final, own, names[0]), *_health(own)])
    return header, rows


def _quality(final: Sequence[Outcome], own: Sequence[Outcome], reference: str) -> list[str]:
    name = own[0].method
    row = [name, f"{own[0].lr:.2g}", mean_and_spread([o.training_loss for o in own], digits=3)]
    for quantity in ("validation_loss", "test_accuracy"):
        row.append(mean_and_spread([getattr(o, quantity) for o in own], digits=3))
        apart = name != reference
        row.append(_signed(differences(final, name, reference, quantity)) if apart else "")
    return row


def _health(own: Sequence[Outcome]) -> list[str]:
    holds = "yes" if all(o.holds for o in own) else "NO"
    return [holds, f"{statistics.fmean(o.cpu_ms for o in own):.1f}"]


def scale_table(outcomes: Sequence[Outcome], names: Sequence[str], seeds: Sequence[int]) -> Table:
    """Return mean validation losses, one column for each scale of the right factors."""
    scales = sorted({o.scale for o in outcomes})
    rows: list[list[str]] = []
    for name in names:
        own = [o for o in outcomes if o.method == name and o.seed in seeds]
        cells = [
            f"{statistics.fmean(o.validation_loss for o in own if o.scale == c):.3f}"
            for c in scales
            if any(o.scale == c for o in own)
        ]
        if own:
            rows.append([name, f"{own[0].lr:.2g}", *cells])
    return ["method", "lr", *(f"right factor times {c:g}" for c in scales)], rows


def draw(final: Sequence[Outcome], names: Sequence[str], path: Path) -> None:
    """Draw the paired differences to the first method, with two standard errors."""
    from matplotlib.figure import Figure

    others = [name for name in names[1:] if any(o.method == name for o in final)]
    figure = Figure(figsize=(9.6, 0.28 * len(others) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = "validation loss minus AdamW's", "test accuracy minus AdamW's"
    for ax, quantity, label in zip(
        panels, ("validation_loss", "test_accuracy"), labels, strict=True
    ):
        pairs = [mean_and_error(differences(final, x, names[0], quantity)) for x in others]
        means, errors = [m for m, _ in pairs], [2 * e if e == e else 0.0 for _, e in pairs]
        ax.axvline(0, color="0.6", linewidth=1)
        ax.errorbar(means, range(len(others)), xerr=errors, fmt="o", markersize=4, color="#0072B2")
        ax.set_xlabel(label)
        ax.set_yticks(range(len(others)), others)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=90)
