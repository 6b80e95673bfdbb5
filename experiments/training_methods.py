"""Every training method on one small transformer: what each costs, keeps and gains over AdamW.

``python -m experiments.training_methods`` writes tables, a figure and a JSON record. Learning rates
are chosen on validation loss, for all methods on one grid; seeds of the choice and of the
comparison differ, and a seed gives every method the same data, start and batches. Two more parts
ask for what invariance promises: one rate for factors of any scale, here and in a factorisation.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import lowrank_opt as lo
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from experiments.training_factors import STEPS as FACTOR_STEPS
from experiments.training_factors import Fit, factor_fits, factor_table
from experiments.training_report import Outcome, best_rate, draw, scale_table, table
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

# First a coarse grid, one seed; then its best rate and the two neighbours, on other seeds.
COARSE, FINE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 3**0.5
STEPS = 150
COARSE_SEEDS, FINE_SEEDS, SEEDS = (10,), (11, 12), (0, 1, 2, 3, 4, 5)
SCALES, SCALE_SEEDS = (0.1, 10.0), (0, 1)
# AdaLoRA's weight of its penalty, the smallest of the paper's three.
ORTHOGONALITY = 0.1
# Dynamic-rank DoRA's weight of its penalty, which ends with the pruning.
DISPERSION = 0.1


class Run:
    """A model, its optimizer, and what happens around a step; the plain case does nothing."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        self.model, self.optimizer = model, optimizer

    def perturbed(self) -> AbstractContextManager[object]:
        """Return a context for forward and backward."""
        return nullcontext()

    def penalty(self) -> Tensor | float:
        """Return what the method adds to the loss."""
        return 0.0

    def step(self) -> None:
        """Take a step with the present gradients."""
        self.optimizer.step()


class FlatRun(Run):
    """AdamW on a randomly perturbed weight."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        super().__init__(model, optimizer, steps)
        self.flat = training.FlatPerturbation(model, sigma=0.1, total_steps=steps, seed=0)

    def perturbed(self) -> AbstractContextManager[object]:
        return self.flat.perturbed()


class ChainRun(Run):
    """AdamW on two links, each of half the steps."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        super().__init__(model, optimizer, steps)
        self.chain = training.ChainOfLowRank(model, optimizer, knots=(steps // 2,))

    def step(self) -> None:
        self.optimizer.step()
        self.chain.step()


class AllocatedRun(Run):
    """AdamW while a quarter of the components is dropped."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        super().__init__(model, optimizer, steps)
        start = sum(pair.rank for pair in training.factor_pairs(model))
        budget = training.CubicBudget(
            start=start, final=start * 3 // 4, total=steps, warmup=steps // 5, hold=steps // 3
        )
        self.allocator = training.RankAllocator(model, budget, optimizer=optimizer)

    def penalty(self) -> Tensor | float:
        return ORTHOGONALITY * training.orthogonality_penalty(self.model).float()

    def step(self) -> None:
        self.allocator.step()
        self.optimizer.step()
        self.allocator.enforce()


class DynamicRun(Run):
    """AdamW while a quarter of the components is dropped: late, and by their magnitude."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        super().__init__(model, optimizer, steps)
        start = sum(pair.rank for pair in training.factor_pairs(model))
        budget = training.CubicBudget.dynamic_rank(start=start, final=start * 3 // 4, total=steps)
        self.allocator = training.RankAllocator(
            model, budget, importance=training.Magnitude(), optimizer=optimizer
        )

    def penalty(self) -> Tensor | float:
        if self.allocator.budget.finished(self.allocator.steps):
            return 0.0
        return DISPERSION * training.dispersion_penalty(self.model).float()

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


def componentwise(shape: tuple[int, int], generator: torch.Generator) -> lo.Parameterization:
    """Return a sum of weighted rank-one terms that can be dropped."""
    return lo.DynamicRank(shape, min(RANK + 1, *shape), generator=generator)


@dataclass(frozen=True)
class TrainingMethod:
    """A name, a parameterization (None: all weights), an optimizer, and what is around it."""

    name: str
    make: Make | None
    optimizer: Callable[[nn.Module, float], Optimizer]
    run: Callable[[nn.Module, Optimizer, int], Run] = Run


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
    TrainingMethod("Factored, AdamW (LoRA)", factored, adamw),
    TrainingMethod("LoRA+ (ratio 4)", factored, lora_plus),
    TrainingMethod("ScaledGD", factored, lambda m, lr: training.ScaledGD(m, lr=lr)),
    TrainingMethod("ScaledAdamW", factored, lambda m, lr: training.ScaledAdamW(m, lr=lr)),
    TrainingMethod("LoRARite", factored, lambda m, lr: training.LoRARite(m, lr=lr)),
    TrainingMethod(
        "LoRARite, trust 0.5", factored, lambda m, lr: training.LoRARite(m, lr=lr, trust=0.5)
    ),
    TrainingMethod(
        "LoRAPro, momentum, normalized",
        factored,
        lambda m, lr: training.LoRAPro(m, lr=lr, momentum=0.9, normalized=True, beta=0.99),
    ),
    TrainingMethod("LoRAProAdamW", factored, lambda m, lr: training.LoRAProAdamW(m, lr=lr)),
    TrainingMethod("LoRAProFull", factored, lambda m, lr: training.LoRAProFull(m, lr=lr)),
    TrainingMethod(
        "LoRAProFull, trust 0.03",
        factored,
        lambda m, lr: training.LoRAProFull(m, lr=lr, trust=0.03),
    ),
    TrainingMethod("SpectralDescent", factored, lambda m, lr: training.SpectralDescent(m, lr=lr)),
    TrainingMethod("FlatPerturbation, AdamW", factored, adamw, FlatRun),
    TrainingMethod("ChainOfLowRank of two, AdamW", factored, adamw, ChainRun),
    TrainingMethod("RankAllocator, AdaLoRA, AdamW", weighted, adamw, AllocatedRun),
    TrainingMethod("RankAllocator, dynamic rank, AdamW", componentwise, adamw, DynamicRun),
    TrainingMethod("NBLoRA, AdamW", bounded, adamw),
    TrainingMethod("NBLoRA, FlatPerturbation", bounded, adamw, FlatRun),
    TrainingMethod("NBLoRA, ChainOfLowRank", bounded, adamw, ChainRun),
    TrainingMethod("DeLoRA, AdamW", normalised, adamw),
    TrainingMethod("GaLore with residual, all weights", None, galore),
    TrainingMethod("AdamW, all weights", None, adamw),
)
# Those whose start is rescaled: an optimizer on the factors of plain LoRA, nothing else.
ON_FACTORS = tuple(k for k, x in enumerate(METHODS) if x.make is factored and x.run is Run)


def train(
    index: int,
    lr: float,
    seed: int,
    steps: int = STEPS,
    *,
    scale: float = 1.0,
    test: bool = False,
) -> Outcome:
    """Train once from right factors times `scale`; test accuracy is NaN unless asked for."""
    method, task = METHODS[index], turned(seed, common_test=True)
    model = _rescaled(adapted(method.make, seed), scale)
    run = method.run(model, method.optimizer(model, lr), steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, steps)
    began = time.process_time()
    with suppress(ConvergenceError):  # a run that diverged shows in its losses
        for batch in batches(len(task.training.labels), steps, seed):
            with run.perturbed():
                run.optimizer.zero_grad()
                logits = model(task.training.images[batch])
                loss = nn.functional.cross_entropy(logits, task.training.labels[batch])
                (loss + run.penalty()).backward()
            run.step()
            schedule.step()
    seconds = time.process_time() - began
    return Outcome(
        method.name,
        lr,
        seed,
        scale,
        loss_and_accuracy(model, task.training)[0],
        *loss_and_accuracy(model, task.validation),
        loss_and_accuracy(model, task.test)[1] if test else math.nan,
        method.make is None or all(site.holds for site in adapter_report(model)),
        1000 * seconds / steps,
    )


@torch.no_grad()
def _rescaled(model: nn.Module, scale: float) -> nn.Module:
    """Multiply all right factors; the left ones are zero, so that W stays zero."""
    if scale != 1.0:
        for pair in training.factor_pairs(model, bilinear=True):
            pair.right.mul_(scale)
    return model


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    coarse: Sequence[float] = COARSE
    coarse_seeds: Sequence[int] = COARSE_SEEDS
    fine_seeds: Sequence[int] = FINE_SEEDS
    seeds: Sequence[int] = SEEDS
    scale_seeds: Sequence[int] = SCALE_SEEDS
    steps: int = STEPS


SMOKE = Plan((1e-2,), (10,), (), (0,), (), 4)


@dataclass(frozen=True)
class Results:
    """All runs of the three parts."""

    tuning: list[Outcome]
    final: list[Outcome]
    scaled: list[Outcome]
    factors: list[Fit]


def run_all(session: Session, plan: Plan) -> Results:
    """Choose rates, compare, rescale, factorise."""
    every = range(len(METHODS))
    tuning: list[Outcome] = []

    def runs(
        rates: Sequence[Sequence[float]], seeds: Sequence[int], label: str
    ) -> Sequence[Outcome]:
        calls = [
            partial(train, k, lr, s, plan.steps) for k in every for lr in rates[k] for s in seeds
        ]
        return session.run(calls, label)

    def chosen(outcomes: Sequence[Outcome]) -> list[float]:
        return [best_rate([o for o in outcomes if o.method == METHODS[k].name]) for k in every]

    tuning += runs([plan.coarse for _ in every], plan.coarse_seeds, "coarse rates")
    rates = chosen(tuning)
    if plan.fine_seeds:
        fine = runs([(x / FINE, x, x * FINE) for x in rates], plan.fine_seeds, "fine rates")
        tuning, rates = [*tuning, *fine], chosen(fine)
    finals = [
        partial(train, k, rates[k], s, plan.steps, test=True) for k in every for s in plan.seeds
    ]
    final = session.run(finals, "test")
    rescaled = [
        partial(train, k, rates[k], s, plan.steps, scale=c)
        for k in ON_FACTORS
        for c in SCALES
        for s in plan.scale_seeds
    ]
    factors = factor_fits(session, 2 if session.smoke else FACTOR_STEPS)
    return Results(tuning, final, session.run(rescaled, "scales"), factors)


def study(session: Session) -> None:
    """Run the experiment."""
    plan = SMOKE if session.smoke else Plan()
    results = run_all(session, plan)
    names, rescaled = [x.name for x in METHODS], [METHODS[k].name for k in ON_FACTORS]
    tables = {
        "training": table(results.final, names),
        "scales": scale_table([*results.final, *results.scaled], rescaled, plan.scale_seeds),
        "factors": factor_table(results.factors),
    }
    for content in tables.values():
        print(text_table(*content), end="\n\n")
    draw(results.final, names, session.folder / "training-methods.png")
    session.write(
        "training-methods.json",
        settings={"rank": RANK, **_settings(plan)},
        tuning=[asdict(o) for o in results.tuning],
        final=[asdict(o) for o in results.final],
        scaled=[asdict(o) for o in results.scaled],
        factors=[asdict(o) for o in results.factors],
        tables={name: markdown_table(*content) for name, content in tables.items()},
    )


def _settings(plan: Plan) -> dict[str, Json]:
    steps = plan.steps
    return {k: steps if k == "steps" else list(x) for k, x in asdict(plan).items()}


def _ready() -> None:
    """Train the network that is adapted."""
    pretrained()


main = experiment(study, __doc__, ready=_ready)


if __name__ == "__main__":
    sys.exit(main())
