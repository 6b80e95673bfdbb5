"""Imbalanced, ill-conditioned factorisation: where invariance under changes of gauge decides.

Minimise ``|L R^T - Y|^2 / 2`` from factors scaled by c and 1 / c: the same W, another gauge.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from experiments.skeleton import Session
from lowrank_opt.errors import ConvergenceError
from lowrank_opt.training import (
    FactorPair,
    LoRAPro,
    LoRAProAdamW,
    LoRAProFull,
    LoRARite,
    ScaledAdamW,
    ScaledGD,
    SpectralDescent,
)

SHAPE, RANK, STEPS = (60, 50), 5, 300
RATES = (0.03, 0.1, 0.3, 1.0)
CONDITIONS, IMBALANCES = (1.0, 100.0), (1.0, 10.0, 100.0)


def _factors(pair: FactorPair) -> list[Tensor]:
    return [pair.left, pair.right]


OPTIMIZERS: dict[str, Callable[[FactorPair, float], Optimizer]] = {
    "gradient descent": lambda p, lr: SGD(_factors(p), lr=lr),
    "Adam": lambda p, lr: Adam(_factors(p), lr=lr),
    "ScaledGD": lambda p, lr: ScaledGD([p], lr=lr),
    "ScaledAdamW": lambda p, lr: ScaledAdamW([p], lr=lr),
    "LoRARite": lambda p, lr: LoRARite([p], lr=lr),
    "LoRARite, trust 0.5": lambda p, lr: LoRARite([p], lr=lr, trust=0.5),
    "LoRAPro": lambda p, lr: LoRAPro([p], lr=lr),
    "LoRAProAdamW": lambda p, lr: LoRAProAdamW([p], lr=lr),
    "LoRAProFull": lambda p, lr: LoRAProFull([p], lr=lr),
    "SpectralDescent": lambda p, lr: SpectralDescent([p], lr=lr),
}


@dataclass(frozen=True)
class Fit:
    """Relative error after all steps; infinite if the run diverged."""

    optimizer: str
    lr: float
    condition: float
    imbalance: float
    error: float


def problem(condition: float, imbalance: float) -> tuple[Tensor, FactorPair]:
    """Return Y of norm 10 and rank 5, and a start ``c L0, R0 / c`` with entries of 0.3 N(0, 1)."""
    g = torch.Generator().manual_seed(0)
    U, V, L, R = (
        torch.randn(size, RANK, generator=g, dtype=torch.float64) for size in (*SHAPE, *SHAPE)
    )
    sigma = 10 * torch.logspace(0, -math.log10(condition), RANK, dtype=torch.float64)
    Y = torch.linalg.qr(U)[0] * sigma @ torch.linalg.qr(V)[0].mT
    left, right = 0.3 * imbalance * L, 0.3 / imbalance * R
    return Y, FactorPair(left.requires_grad_(), right.requires_grad_())


def fit(name: str, lr: float, condition: float, imbalance: float, steps: int = STEPS) -> Fit:
    """Take all steps, with a cosine schedule."""
    Y, pair = problem(condition, imbalance)
    optimizer = OPTIMIZERS[name](pair, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    error = math.inf
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (pair.left @ pair.right.mT - Y).square().sum()).backward()
            optimizer.step()
            schedule.step()
        error = float((pair.to_dense() - Y).norm() / Y.norm())
    except ConvergenceError:
        pass
    return Fit(name, lr, condition, imbalance, error if math.isfinite(error) else math.inf)


def factor_fits(session: Session, steps: int = STEPS) -> list[Fit]:
    """Run every optimizer with every rate from every start."""
    calls = [
        partial(fit, name, lr, k, c, steps)
        for name in OPTIMIZERS
        for lr in RATES
        for k in CONDITIONS
        for c in IMBALANCES
    ]
    return session.run(calls, "factors")


def factor_table(fits: Sequence[Fit]) -> tuple[list[str], list[list[str]]]:
    """Return the least error over the rates and, in brackets, its rate: a row an optimizer."""
    settings = [(k, c) for k in CONDITIONS for c in IMBALANCES]
    header = ["optimizer", *(f"κ {k:g}, c {c:g}" for k, c in settings)]
    names = [name for name in OPTIMIZERS if any(f.optimizer == name for f in fits)]
    return header, [
        [name, *(_best(fits, name, *setting) for setting in settings)] for name in names
    ]


def _best(fits: Sequence[Fit], name: str, condition: float, imbalance: float) -> str:
    key = (name, condition, imbalance)
    own = [f for f in fits if (f.optimizer, f.condition, f.imbalance) == key]
    best = min(own, key=lambda f: f.error)
    return f"{best.error:.0e} ({best.lr:g})" if math.isfinite(best.error) else "diverged"
