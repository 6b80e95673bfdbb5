"""One small panel for each method, with LoRA's curve behind: by rate, and old against new task."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.claims.finding import mean_interval
from experiments.transfer.methods import LORA
from experiments.transfer.report import NEAR, Curve, best, curve, usable
from experiments.transfer.runs import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
OWN, BEHIND, TESTED = "#0072B2", "0.6", "#D55E00"
Draw = Callable[["Axes", str], None]


def draw_rates(runs: Sequence[Outcome], path: Path, label: str) -> None:
    """Draw accuracy against the rate, from the worst to the best seed; usable rates are shaded."""
    seeds = sorted({o.seed for o in runs})
    behind = curve(runs, LORA, seeds)

    def panel(ax: "Axes", method: str) -> None:
        own = curve(runs, method, seeds)
        each = [curve(runs, method, [seed]) for seed in seeds]
        ends = usable(own, best(own).accuracy - NEAR)
        if ends is not None:
            ax.axvspan(10 ** ends[0], 10 ** ends[1], color=OWN, alpha=0.15, lw=0)
        ax.plot(*_xy(behind, "rate"), color=BEHIND, lw=1)
        x, y = _xy(own, "rate")
        heights = [[c[k].accuracy for c in each] for k in range(len(own))]
        ax.fill_between(
            x, [min(h) for h in heights], [max(h) for h in heights], color=OWN, alpha=0.3, lw=0
        )
        ax.plot(x, y, "o-", color=OWN, ms=2.5, lw=1.2)
        ax.set_xscale("log")
        ax.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["", "0.001", "", "0.1"])
        ax.minorticks_off()

    _panels(runs, panel, path, "learning rate", label)


def draw_fronts(
    runs: Sequence[Outcome],
    final: Sequence[Outcome],
    path: Path,
    labels: tuple[str, str],
    *,
    beyond: Sequence[Outcome] = (),
) -> None:
    """Draw what is kept against what is learnt, along the rates, and the tests with intervals.

    Tests beyond the chosen rate are rings.
    """
    seeds = sorted({o.seed for o in runs})
    behind = curve(runs, LORA, seeds)

    def panel(ax: "Axes", method: str) -> None:
        ax.plot(*_xy(behind, "front"), color=BEHIND, lw=1)
        ax.plot(*_xy(curve(runs, method, seeds), "front"), "o-", color=OWN, ms=2.5, lw=1)
        for tests, mark, fill in ((final, "D", TESTED), (beyond, "o", "none")):
            own = [o for o in tests if o.method == method]
            if own:
                _test(ax, own, mark, fill)

    _panels(runs, panel, path, *labels)


def _test(ax: "Axes", own: Sequence[Outcome], mark: str, fill: str) -> None:
    x, y = (
        mean_interval([float(getattr(o, q)) for o in own]) for q in ("test_accuracy", "test_kept")
    )
    bars = [[[v - lo], [hi - v]] if math.isfinite(lo) else None for v, lo, hi in (x, y)]
    shown = ax.errorbar(x[0], y[0], xerr=bars[0], yerr=bars[1], fmt=mark, ms=3, color=TESTED, lw=1)
    shown[0].set_markerfacecolor(fill)


def _xy(points: Curve, kind: str) -> tuple[list[float], list[float]]:
    if kind == "rate":
        return [10**p.log_rate for p in points], [p.accuracy for p in points]
    return [p.accuracy for p in points], [p.kept for p in points]


def _panels(runs: Sequence[Outcome], draw: Draw, path: Path, x: str, y: str) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(o.method for o in runs))
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(4.4, 1.15 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for ax, name in zip(panels, names, strict=False):
        draw(ax, name)
        ax.set_title(name, fontsize=7.5 if len(name) < 20 else 6.5, pad=2)
        ax.tick_params(labelsize=7.5, length=2)
        ax.grid(alpha=0.25, lw=0.5)
    for k, ax in enumerate(panels):
        ax.tick_params(labelbottom=k + COLUMNS >= len(names))
        ax.set_visible(k < len(names))
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
    figure.savefig(path, dpi=180)
