"""What one step of an optimizer over factors costs, in units of AdamW's on the same factors.

All optimizers take turns of a few steps each on one pair of factors with fixed random gradients, so
that whatever else the machine does falls on all of them. Passes, the work that grows with the
matrix, are counted: one is an m x r or n x r matrix times an r x r one. Run as
``python -m experiments.step_cost``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.optim import AdamW, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from experiments.skeleton import Session, experiment
from experiments.tables import markdown_table, text_table
from lowrank_opt import training
from lowrank_opt.training import FactorPair

Make = Callable[[FactorPair], Optimizer]

# Rates are small: factors stay where they are, whatever the number of turns.
RATE = 1e-6
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda pair: AdamW([pair.left, pair.right], lr=RATE),
    "ScaledGD": lambda pair: training.ScaledGD([pair], lr=RATE),
    "ScaledAdamW": lambda pair: training.ScaledAdamW([pair], lr=RATE),
    "LoRARite": lambda pair: training.LoRARite([pair], lr=RATE),
    "LoRARite, escaped mass": lambda pair: training.LoRARite([pair], lr=RATE, escaped_mass=True),
    "LoRAPro": lambda pair: training.LoRAPro([pair], lr=RATE),
    "LoRAPro, momentum": lambda pair: training.LoRAPro([pair], lr=RATE, momentum=0.9),
    "LoRAPro, momentum, normalized": lambda pair: training.LoRAPro(
        [pair], lr=RATE, momentum=0.9, normalized=True
    ),
    "LoRAProAdamW": lambda pair: training.LoRAProAdamW([pair], lr=RATE),
    "SpectralDescent": lambda pair: training.SpectralDescent([pair], lr=RATE),
}


@dataclass(frozen=True)
class StepCost:
    """One optimizer.

    Attributes
    ----------
    name : str
    passes : float
        Operations of matrix products over those of one pass.
    microseconds, ratios : list of float
        Wall time of a step in each turn, and over AdamW's in the same turn.
    """

    name: str
    passes: float
    microseconds: list[float]
    ratios: list[float]


def random_pair(rows: int, cols: int, rank: int) -> FactorPair:
    """Return well-conditioned factors with gradients."""
    generator = torch.Generator().manual_seed(0)
    left, right, *gradients = (
        torch.randn(size, rank, generator=generator) for size in (rows, cols, rows, cols)
    )
    left.requires_grad_().grad, right.requires_grad_().grad = gradients
    return FactorPair(left, right)


def passes(optimizer: Optimizer, pair: FactorPair) -> float:
    """Return the matrix products of a step, in passes over one factor."""
    (m, n), r = pair.shape, pair.rank
    # Torch's own table lacks the product in place.
    in_place = {torch.ops.aten.addmm_: _product_in_place}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        optimizer.step()
    return counter.get_total_flops() / ((m + n) * r**2)


def _product_in_place(_: list[int], left: list[int], right: list[int], **_kwargs: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def seconds_a_step(optimizer: Optimizer, steps: int) -> float:
    """Return the mean wall time of some steps."""
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    return (time.perf_counter() - began) / steps


def measure(shape: tuple[int, int], rank: int, turns: int, steps: int) -> list[StepCost]:
    """Return the cost of every optimizer at one size."""
    pairs = [random_pair(*shape, rank) for _ in OPTIMIZERS]
    optimizers = [make(pair) for make, pair in zip(OPTIMIZERS.values(), pairs, strict=True)]
    for optimizer in optimizers:
        # The first steps create the state.
        _ = seconds_a_step(optimizer, 3)
    counts = [passes(optimizer, pair) for optimizer, pair in zip(optimizers, pairs, strict=True)]
    times = [[seconds_a_step(optimizer, steps) for optimizer in optimizers] for _ in range(turns)]
    return [
        StepCost(name, count, [1e6 * turn[k] for turn in times], [t[k] / t[0] for t in times])
        for k, (name, count) in enumerate(zip(OPTIMIZERS, counts, strict=True))
    ]


HEADER = ["optimizer", "passes", "fastest, µs", "over AdamW's fastest", "ratio, median (quartiles)"]


def row(cost: StepCost, adamw: StepCost) -> list[str]:
    """Return the line of the table."""
    low, middle, high = statistics.quantiles(cost.ratios, n=4, method="inclusive")
    fastest = min(cost.microseconds)
    return [
        cost.name,
        f"{cost.passes:.0f}",
        f"{fastest:.0f}",
        f"{fastest / min(adamw.microseconds):.2f}",
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
    ]


def study(session: Session) -> None:
    """Print the table and write the record."""
    options = session.options
    torch.set_num_threads(options.threads)
    shape, rank, turns = (options.rows, options.cols), options.rank, options.turns
    if session.smoke:
        shape, rank, turns = (60, 40), 4, 2
    costs = measure(shape, rank, turns, options.steps)
    rows = [row(cost, costs[0]) for cost in costs]
    print(f"{shape[0]} x {shape[1]}, rank {rank}, {options.threads} threads")
    print(text_table(HEADER, rows))
    names = {"rows": shape[0], "cols": shape[1], "rank": rank, "turns": turns}
    session.write(
        "step-cost.json",
        settings={**names, "steps": options.steps, "threads": options.threads},
        costs=[asdict(cost) for cost in costs],
        table=markdown_table(HEADER, rows),
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3, help="of each optimizer in a turn")
    parser.add_argument("--threads", type=int, default=1)


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
