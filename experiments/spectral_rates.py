"""One learning rate for all ranks, widths and scales of factors: `SpectralDescent` beside AdamW.

A linear map of a given width is fitted by an update of a given rank, from right factors times a
scale; reported is the loss after a fixed number of steps at each rate, over seeds, and the best
rate of each setting: if it is one, a rate found on a small rank carries over.

    python -m experiments.spectral_rates --out results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim import AdamW, Optimizer

import lowrank_opt as lo
from experiments.records import Json, environment, prepare_folder, write_record
from experiments.tables import markdown_table, text_table
from lowrank_opt.training import SpectralDescent

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RANKS, WIDTHS, SCALES = (2, 8, 32, 64), (64, 256), (0.1, 1.0, 10.0)
OPTIMIZERS = ("SpectralDescent", "AdamW")


@dataclass(frozen=True)
class Run:
    """The relative loss at the end of one run."""

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
    best = float(torch.linalg.svdvals(target)[rank:].norm())
    loss = float(torch.linalg.matrix_norm(update().detach().to_dense() - target)) / max(best, 1e-3)
    return Run(optimizer, rank, width, scale, lr, seed, loss)


def _optimizer(name: str, update: lo.Factored, lr: float) -> Optimizer:
    if name == "AdamW":
        return AdamW(update.parameters(), lr=lr, weight_decay=0.0)
    return SpectralDescent(update, lr=lr)


def best_rate(runs: Sequence[Run]) -> float:
    """Return the rate with the least mean loss over seeds; runs that diverged count as such."""
    means: dict[float, float] = {}
    for lr in sorted({r.lr for r in runs}):
        losses = [r.loss for r in runs if r.lr == lr]
        means[lr] = sum(x if x == x else float("inf") for x in losses) / len(losses)
    return min(means, key=lambda lr: means[lr])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    parser.add_argument("--quick", action="store_true", help="two rates, one small setting")
    options = parser.parse_args(arguments)
    quick = bool(options.quick)
    rates, seeds, steps = (RATES[2:4], (0,), 20) if quick else (RATES, tuple(range(5)), 300)
    settings = (
        [(2, 64, 1.0)] if quick else [(r, w, c) for r in RANKS for w in WIDTHS for c in SCALES]
    )
    runs = [
        run(name, *setting, lr, seed, steps)
        for name in OPTIMIZERS
        for setting in settings
        for lr in rates
        for seed in seeds
    ]
    header = ["rank", "width", "scale", *(f"best rate, {name}" for name in OPTIMIZERS)]
    rows = [
        [str(x) for x in setting] + [f"{best_rate(_of(runs, n, setting)):g}" for n in OPTIMIZERS]
        for setting in settings
    ]
    print(text_table(header, rows))
    record: dict[str, Json] = {
        "environment": environment(),
        "settings": {"rates": list(rates), "seeds": list(seeds), "steps": steps},
        "runs": [asdict(r) for r in runs],
        "table": markdown_table(header, rows),
    }
    folder = prepare_folder(options.out)
    _draw(runs, folder / "spectral-rates.png")
    write_record(folder / "spectral-rates.json", record)
    return 0


def _of(runs: Sequence[Run], optimizer: str, setting: tuple[int, int, float]) -> list[Run]:
    return [r for r in runs if r.optimizer == optimizer and (r.rank, r.width, r.scale) == setting]


def _draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the mean loss against the rate, a line for each setting, with standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(OPTIMIZERS), figsize=(9, 3.5), sharey=True)
    for name, ax in zip(OPTIMIZERS, axes, strict=True):
        for setting in sorted({(r.rank, r.width, r.scale) for r in runs}):
            of = _of(runs, name, setting)
            rates = sorted({r.lr for r in of})
            losses = [torch.tensor([r.loss for r in of if r.lr == lr]) for lr in rates]
            errors = [float(x.std(correction=0)) / len(x) ** 0.5 for x in losses]
            label = "rank {}, width {}, scale {:g}".format(*setting)
            ax.errorbar(rates, [float(x.mean()) for x in losses], yerr=errors, label=label)
        ax.set(title=name, xlabel="learning rate", xscale="log", yscale="log")
    axes[0].set_ylabel("distance to the target over the least one")
    axes[-1].legend(fontsize=5)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
