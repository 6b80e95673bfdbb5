"""Every training method on one small transformer: what each costs, keeps and gains over AdamW.

``python -m experiments.training_methods`` writes a table and a JSON record. All methods share one
grid of learning rates; each takes the one with the least validation loss over the seeds, and its
test images are looked at once, with that rate.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

import lowrank_opt as lo
from experiments.parallel import Workers
from experiments.records import Json, environment, prepare_folder, write_record
from experiments.tables import markdown_table, mean_and_spread, text_table
from experiments.training_vit import (
    RANK,
    Make,
    adapted,
    batches,
    loss_and_accuracy,
    pretrained,
    turned,
)
from lowrank_opt import training
from lowrank_opt.errors import ConvergenceError
from lowrank_opt.nn import adapter_report

GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STEPS = 150
TUNING_SEEDS, SEEDS = (0, 1), (0, 1, 2, 3)


class Run:
    """A model, its optimizer, and what happens around a step; the plain case does nothing."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def perturbed(self) -> AbstractContextManager[object]:
        """Return a context for forward and backward."""
        return nullcontext()

    def step(self) -> None:
        """Take a step with the present gradients."""
        self.optimizer.step()


class FlatRun(Run):
    """AdamW on a randomly perturbed weight."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.flat = training.FlatPerturbation(model, sigma=0.1, total_steps=STEPS, seed=0)

    def perturbed(self) -> AbstractContextManager[object]:
        return self.flat.perturbed()


class ChainRun(Run):
    """AdamW on two links, each of half the steps."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self.chain = training.ChainOfLowRank(model, optimizer, knots=(STEPS // 2,))

    def step(self) -> None:
        self.optimizer.step()
        self.chain.step()


class AllocatedRun(Run):
    """AdamW while a quarter of the components is dropped."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        start = sum(pair.rank for pair in training.factor_pairs(model))
        budget = training.CubicBudget(
            start=start, final=start * 3 // 4, total=STEPS, warmup=STEPS // 5, hold=STEPS // 3
        )
        self.allocator = training.RankAllocator(model, budget, optimizer=optimizer)

    def step(self) -> None:
        self.allocator.step()
        self.optimizer.step()
        self.allocator.enforce()


def factored(shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
    """Return a plain LoRA update."""
    return lo.Factored(shape, min(RANK, *shape), generator=generator)


def bounded(shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
    """Return an update of spectral norm at most 1."""
    return lo.NBLoRA(shape, min(RANK, *shape), radius=1.0, generator=generator)


def normalised(shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
    """Return rank-one terms of a common bound."""
    return lo.DeLoRA(shape, min(RANK, *shape), radius=4.0, generator=generator)


def weighted(shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
    """Return an update with components that can be dropped."""
    return lo.AdaLoRA(shape, min(RANK + 1, *shape), generator=generator)


@dataclass(frozen=True)
class Method:
    """A name, a parameterization (None: all weights), an optimizer, and what is around it."""

    name: str
    make: Make | None
    optimizer: Callable[[nn.Module, float], Optimizer]
    run: Callable[[nn.Module, Optimizer], Run] = Run


def adamw(model: nn.Module, lr: float) -> Optimizer:
    """Return AdamW on all trainable parameters."""
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def lora_plus(model: nn.Module, lr: float) -> Optimizer:
    """Return AdamW with four times the rate for left factors."""
    return AdamW(training.lora_plus_groups(model, lr=lr, ratio=4.0), weight_decay=0.0)


def galore(model: nn.Module, lr: float) -> Optimizer:
    """Return Adam in gradient subspaces, on all weights."""
    return training.GaLore(model.parameters(), lr=lr, rank=RANK, refresh=50, residual=True)


METHODS = (
    Method("Factored, AdamW (LoRA)", factored, adamw),
    Method("LoRA+ (ratio 4)", factored, lora_plus),
    Method("ScaledGD", factored, lambda m, lr: training.ScaledGD(m, lr=lr)),
    Method("ScaledAdamW", factored, lambda m, lr: training.ScaledAdamW(m, lr=lr)),
    Method("LoRARite", factored, lambda m, lr: training.LoRARite(m, lr=lr)),
    Method(
        "LoRAPro, momentum, normalized",
        factored,
        lambda m, lr: training.LoRAPro(m, lr=lr, momentum=0.9, normalized=True),
    ),
    Method("LoRAProAdamW", factored, lambda m, lr: training.LoRAProAdamW(m, lr=lr)),
    Method("SpectralDescent", factored, lambda m, lr: training.SpectralDescent(m, lr=lr)),
    Method("FlatPerturbation, AdamW", factored, adamw, FlatRun),
    Method("ChainOfLowRank of two, AdamW", factored, adamw, ChainRun),
    Method("RankAllocator, AdaLoRA, AdamW", weighted, adamw, AllocatedRun),
    Method("NBLoRA, AdamW", bounded, adamw),
    Method("NBLoRA, FlatPerturbation", bounded, adamw, FlatRun),
    Method("NBLoRA, ChainOfLowRank", bounded, adamw, ChainRun),
    Method("DeLoRA, AdamW", normalised, adamw),
    Method("GaLore with residual, all weights", None, galore),
    Method("AdamW, all weights", None, adamw),
)


@dataclass(frozen=True)
class Outcome:
    """One training run."""

    method: str
    lr: float
    seed: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    test_accuracy: float
    holds: bool
    cpu_seconds: float


def train(index: int, lr: float, seed: int, *, test: bool) -> Outcome:
    """Train once; the test accuracy is NaN unless asked for."""
    method, task = METHODS[index], turned(seed)
    model = adapted(method.make, seed)
    run = method.run(model, method.optimizer(model, lr))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, STEPS)
    began = time.process_time()
    with suppress(ConvergenceError):  # a run that diverged shows in its losses
        for batch in batches(len(task.training.labels), STEPS, seed):
            with run.perturbed():
                run.optimizer.zero_grad()
                logits = model(task.training.images[batch])
                nn.functional.cross_entropy(logits, task.training.labels[batch]).backward()
            run.step()
            schedule.step()
    seconds = time.process_time() - began
    return Outcome(
        method.name,
        lr,
        seed,
        loss_and_accuracy(model, task.training)[0],
        *loss_and_accuracy(model, task.validation),
        loss_and_accuracy(model, task.test)[1] if test else math.nan,
        method.make is None or all(site.holds for site in adapter_report(model)),
        seconds,
    )


def best_rate(outcomes: Sequence[Outcome]) -> float:
    """Return the learning rate with the least validation loss, averaged over seeds."""

    def mean_loss(lr: float) -> float:
        # A run that diverged has no finite loss: its rate is never the best one.
        losses = [o.validation_loss for o in outcomes if o.lr == lr]
        return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf

    return min({o.lr for o in outcomes}, key=mean_loss)


def table(final: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one for each method."""
    header = ["method", "best lr", "training loss", "validation loss", "test accuracy"]
    rows: list[list[str]] = []
    for method in METHODS:
        own = [o for o in final if o.method == method.name]
        if own:
            seconds = statistics.fmean(o.cpu_seconds for o in own)
            rows.append(
                [
                    method.name,
                    f"{own[0].lr:g}",
                    mean_and_spread([o.training_loss for o in own]),
                    mean_and_spread([o.validation_loss for o in own], digits=3),
                    mean_and_spread([o.test_accuracy for o in own], digits=3),
                    "yes" if all(o.holds for o in own) else "NO",
                    f"{1000 * seconds / STEPS:.1f}",
                ]
            )
    return [*header, "bounds hold", "CPU ms a step"], rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the record")
    parser.add_argument("--quick", action="store_true", help="two rates and one seed")
    options = parser.parse_args(arguments)
    folder = prepare_folder(options.out)
    grid, tuning, seeds = GRID, TUNING_SEEDS, SEEDS
    if options.quick:
        grid, tuning, seeds = (1e-2, 1e-1), SEEDS[:1], SEEDS[:1]
    every = range(len(METHODS))
    with Workers(_ready) as workers:
        trials = [
            partial(train, k, lr, s, test=False) for k in every for lr in grid for s in tuning
        ]
        tuned = workers.run(trials, "learning rates")
        rates = [best_rate([o for o in tuned if o.method == METHODS[k].name]) for k in every]
        finals = [partial(train, k, rates[k], s, test=True) for k in every for s in seeds]
        final = workers.run(finals, "test")
    header, rows = table(final)
    print(text_table(header, rows))
    record: dict[str, Json] = {
        "environment": environment(),
        "settings": {"steps": STEPS, "rank": RANK, "grid": list(grid), "seeds": list(seeds)},
        "tuning": [asdict(o) for o in tuned],
        "final": [asdict(o) for o in final],
        "table": markdown_table(header, rows),
    }
    write_record(folder / "training-methods.json", record)
    return 0


def _ready() -> None:
    pretrained()


if __name__ == "__main__":
    sys.exit(main())
