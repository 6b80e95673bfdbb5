"""The record of the comparison as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median

from experiments.peers.methods import METHODS, PeerMethod
from experiments.tables import markdown_table

Run = dict[str, object]


def runs_of(runs: Iterable[Run], method: PeerMethod, dataset: str | None = None) -> list[Run]:
    """Return the finished fits of a method."""
    return [
        run
        for run in runs
        if run["method"] == method.name
        and (dataset is None or run["set"] == dataset)
        and "rmse" in run
    ]


def column(runs: Sequence[Run], name: str) -> list[float]:
    """Return one number of each run."""
    return [float(str(run[name])) for run in runs]


def tables(runs: Sequence[Run]) -> str:
    """Return one table for each kind of method and group of sets."""
    sets = sorted({str(run["set"]) for run in runs})
    folds = [name for name in sets if name.startswith("u")]
    groups = [group for group in (folds, [s for s in sets if s not in folds]) if group]
    kinds = list(dict.fromkeys(method.kind for method in METHODS))
    parts = [_table(runs, kind, group) for group in groups for kind in kinds]
    return "\n\n".join(part for part in parts if part)


def _table(runs: Sequence[Run], kind: str, sets: Sequence[str]) -> str:
    methods = [method for method in METHODS if method.kind == kind]
    chosen = {m.name: [r for s in sets for r in runs_of(runs, m, s)] for m in methods}
    times = {
        m.name: median(column(chosen[m.name], "cpu_seconds")) for m in methods if chosen[m.name]
    }
    if not times:
        return ""
    fastest = min((times[m.name] for m in methods if m.name in times and not m.ours), default=None)
    lines = [_line(method, chosen[method.name], sets, fastest) for method in methods]
    header = ["method", *sets, "MAE", "fit s", "CPU s", "ratio", "peak MB"]
    title = f"### {kind[0].upper()}{kind[1:]}: " + ", ".join(sets)
    body = markdown_table(header, [line for line in lines if line])
    missing = [f"{m.name}: not installed." for m in methods if _is_missing(runs, m)]
    return "\n\n".join([title, body, *missing])


def _line(
    method: PeerMethod, runs: Sequence[Run], sets: Sequence[str], fastest: float | None
) -> list[str]:
    if not runs:
        return []
    by_set = [column(runs_of(runs, method, name), "rmse") for name in sets]
    errors = [f"{mean(values):.4f}" if values else "-" for values in by_set]
    name = f"**lowrank_opt {method.name}**" if method.ours else method.name
    cpu = median(column(runs, "cpu_seconds"))
    ratio = "-" if not fastest else f"{cpu / fastest:.2f}"
    return [
        name,
        *errors,
        f"{mean(column(runs, 'mae')):.4f}",
        f"{median(column(runs, 'fit_seconds')):.2f}",
        f"{cpu:.2f}",
        ratio,
        f"{max(column(runs, 'peak_mb')):.0f}",
    ]


def _is_missing(runs: Sequence[Run], method: PeerMethod) -> bool:
    return any(run["method"] == method.name and "missing" in run for run in runs)


def figure(runs: Sequence[Run], dataset: str, path: Path) -> None:
    """Draw error against CPU seconds of the fit, on one set, and save it."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    axes.margins(x=0.2)
    for k, method in enumerate(METHODS):
        chosen = runs_of(runs, method, dataset)
        if chosen:
            x, y = median(column(chosen, "cpu_seconds")), mean(column(chosen, "rmse"))
            axes.scatter(x, y, marker="o" if method.ours else "x", color=_COLORS[method.kind])
            place = (4, 4 if k % 4 < 2 else -10)  # neighbours in the table are often close
            axes.annotate(method.name, (x, y), place, textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="CPU seconds of the fit", ylabel=f"test RMSE on {dataset}")
    axes.set_title("circles: lowrank_opt; crosses: peers", fontsize=9)
    fig.savefig(path, dpi=120)
    plt.close(fig)


_COLORS = {"point estimate": "tab:blue", "Bayesian": "tab:orange", "with features": "tab:green"}
