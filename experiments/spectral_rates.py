"""One learning rate for all ranks, widths and scales of factors: `SpectralDescent` beside AdamW.

A linear map of a given width is fitted by an update of a given rank, from right factors times a
scale; reported are the best rate of each setting, and how much worse a setting gets by the one rate
that is best for all settings together: if little, a rate found on a small rank carries over.

    python -m experiments.spectral_rates --out results
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim import AdamW, Optimizer

import lowrank_opt as lo
from experiments.panels import column, save
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.training import SpectralDescent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RANKS, WIDTHS, SCALES = (2, 8, 32, 64), (96, 192), (0.1, 1.0, 10.0)
SEEDS, STEPS = (0, 1, 2, 3), 200
Setting = tuple[int, int, float]
OPTIMIZERS = ("SpectralDescent", "AdamW")


@dataclass(frozen=True)
class Run:
    """The relative distance to the best approximation of the run's rank, at the end."""

    optimizer: str
    rank: int
    width: int
    scale: float
    lr: float
    seed: int
    loss: float


def run(
    optimizer: str, rank: int, width: int, scale: float, lr: float, seed: int, steps: int
) -> Run:
    """Fit a target of spectral norm 1 with a slowly falling spectrum."""
    g = torch.Generator().manual_seed(seed)
    frames = [torch.linalg.qr(torch.randn(width, width, generator=g)).Q for _ in range(2)]
    target = (frames[0] * torch.arange(1, width + 1).pow(-0.7)) @ frames[1].mT
    update = lo.Factored((width, width), rank, generator=g)
    with torch.no_grad():
        update.right.mul_(scale)
    taken = _optimizer(optimizer, update, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(taken, steps)
    x = torch.randn(steps, 32, width, generator=g)
    for batch in x:
        taken.zero_grad()
        (update().linear(batch) - batch @ target.mT).square().mean().backward()
        taken.step()
        schedule.step()
    U, sigma, Vh = torch.linalg.svd(target)
    nearest = (U[:, :rank] * sigma[:rank]) @ Vh[:rank]
    distance = torch.linalg.matrix_norm(update().detach().to_dense() - nearest)
    loss = float(distance / torch.linalg.matrix_norm(nearest))
    return Run(optimizer, rank, width, scale, lr, seed, loss)


def _optimizer(name: str, update: lo.Factored, lr: float) -> Optimizer:
    if name == "AdamW":
        return AdamW(update.parameters(), lr=lr, weight_decay=0.0)
    return SpectralDescent(update, lr=lr)


def best_rate(runs: Sequence[Run]) -> float:
    """Return the rate with the least mean loss over seeds; runs that diverged count as such."""
    means = {lr: _mean_loss(runs, lr) for lr in sorted({r.lr for r in runs})}
    return min(means, key=lambda lr: means[lr])


def common_rate(runs: Sequence[Run]) -> float:
    """Return the one rate with the least mean logarithm of the loss, over settings and seeds."""
    means: dict[float, float] = {}
    for lr in sorted({r.lr for r in runs}):
        logs = [math.log(r.loss) if r.loss == r.loss else math.inf for r in runs if r.lr == lr]
        means[lr] = sum(logs) / len(logs)
    return min(means, key=lambda lr: means[lr])


def price(runs: Sequence[Run], lr: float) -> list[float]:
    """Return, seed by seed, the loss at a rate over that of the setting's own best rate."""
    own = best_rate(runs)
    at = {(r.seed, r.lr): r.loss for r in runs}
    return [at[seed, lr] / at[seed, own] for seed in sorted({r.seed for r in runs})]


def _mean_loss(runs: Sequence[Run], lr: float) -> float:
    losses = [r.loss for r in runs if r.lr == lr]
    return sum(x if x == x else math.inf for x in losses) / len(losses)


def study(session: Session) -> None:
    """Run the experiment."""
    rates, seeds, steps = (RATES[2:4], (0,), 20) if session.smoke else (RATES, SEEDS, STEPS)
    settings: list[Setting] = [(2, 64, 1.0)]
    if not session.smoke:
        settings = [(r, w, c) for r in RANKS for w in WIDTHS for c in SCALES]
    calls = [
        partial(run, name, *setting, lr, seed, steps)
        for name in OPTIMIZERS
        for setting in settings
        for lr in rates
        for seed in seeds
    ]
    runs = session.run(calls, "rates")
    common = {name: common_rate([r for r in runs if r.optimizer == name]) for name in OPTIMIZERS}
    header = ["rank", "width", "scale"]
    for name in OPTIMIZERS:
        header += [f"best rate, {name}", f"at {common[name]:g}, over the best"]
    rows = [_row(runs, setting, common) for setting in settings]
    print(text_table(header, rows))
    _draw(runs, common, session.folder / "spectral-rates.png")
    session.write(
        "spectral-rates.json",
        settings={"rates": list(rates), "seeds": list(seeds), "steps": steps},
        common_rates=dict(common),
        runs=[asdict(r) for r in runs],
        table=markdown_table(header, rows),
    )


def _row(runs: Sequence[Run], setting: Setting, common: Mapping[str, float]) -> list[str]:
    row = [str(setting[0]), str(setting[1]), f"{setting[2]:g}"]
    for name in OPTIMIZERS:
        of = _of(runs, name, setting)
        row += [f"{best_rate(of):g}", mean_and_spread(price(of, common[name]), 2)]
    return row


def _of(runs: Sequence[Run], optimizer: str, setting: tuple[int, int, float]) -> list[Run]:
    return [r for r in runs if r.optimizer == optimizer and (r.rank, r.width, r.scale) == setting]


def _draw(runs: Sequence[Run], common: Mapping[str, float], path: Path) -> None:
    """Draw the loss against the rate, with two standard errors; colours tell the scale."""
    figure, panels = column(len(OPTIMIZERS))
    settings = sorted({(r.rank, r.width, r.scale) for r in runs})
    scales = sorted({setting[2] for setting in settings})
    for name, ax in zip(OPTIMIZERS, panels, strict=True):
        for setting in settings:
            color = f"C{scales.index(setting[2])}"
            first = setting[:2] == settings[0][:2]
            _line(ax, _of(runs, name, setting), color, f"right factor x {setting[2]:g}" * first)
        ax.axvline(common[name], color="0.6", linewidth=1)
        ax.set(xlabel="learning rate", xscale="log", yscale="log")
        ax.set_title(name, fontsize=9)
        ax.set_ylabel("distance to the best\nrank-r approximation", fontsize=9)
    save(figure, panels[0], path, columns=1)


def _line(ax: Axes, of: Sequence[Run], color: str, label: str) -> None:
    rates = sorted({r.lr for r in of})
    losses = [torch.tensor([r.loss for r in of if r.lr == lr]) for lr in rates]
    errors = [2 * float(x.std(correction=0)) / max(len(x) - 1, 1) ** 0.5 for x in losses]
    means = [float(x.mean()) for x in losses]
    ax.errorbar(rates, means, yerr=errors, color=color, lw=0.8, alpha=0.7, label=label or None)


main = experiment(study, __doc__)

if __name__ == "__main__":
    sys.exit(main())
