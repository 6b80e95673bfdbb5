"""Time the fused observed-entries loss against gather-and-autograd, alternating in one run.

Forward and backward over the same entries and factors, in float32. Both are warmed up first; then
they take turns, so that whatever else the machine does falls on both. Run as
``python -m experiments.kernel_speed``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import lowrank_opt as lo
from experiments.records import Json
from experiments.skeleton import Session, experiment
from experiments.tables import text_table
from lowrank_opt.kernels import observed_squared_loss


@dataclass(frozen=True)
class Timing:
    """Milliseconds of both forms, and the ratio of each pair of turns.

    Parameters
    ----------
    rank : int
    fused, gathered : list of float
        Milliseconds, one for each turn.
    loss_difference, gradient_difference : float
        Largest relative difference between the two results.
    """

    rank: int
    fused: list[float]
    gathered: list[float]
    loss_difference: float
    gradient_difference: float

    @property
    def ratios(self) -> list[float]:
        """How many times faster the fused form was, turn by turn."""
        return [slow / fast for slow, fast in zip(self.gathered, self.fused, strict=True)]

    def record(self) -> dict[str, Json]:
        """Return all numbers and the median ratio, for JSON."""
        return {**asdict(self), "median_ratio": statistics.median(self.ratios)}

    def row(self) -> list[str]:
        """Return the line of the table."""
        low, high = min(self.ratios), max(self.ratios)
        return [
            str(self.rank),
            f"{statistics.median(self.fused):.1f}",
            f"{statistics.median(self.gathered):.1f}",
            f"{statistics.median(self.ratios):.1f}",
            f"{low:.1f} .. {high:.1f}",
            f"{max(self.loss_difference, self.gradient_difference):.0e}",
        ]


HEADER = ["rank", "fused ms", "gather ms", "median ratio", "spread", "difference"]


def random_observations(shape: tuple[int, int], entries: int, seed: int) -> lo.Observations:
    """Return distinct entries at random places, in random order."""
    g = torch.Generator().manual_seed(seed)
    m, n = shape
    cells = torch.unique(torch.randint(m * n, (entries + entries // 4,), generator=g))
    cells = cells[torch.randperm(len(cells), generator=g)][:entries]
    return lo.Observations(cells // n, cells % n, torch.randn(len(cells), generator=g), shape)


def fused_loss(op: lo.LowRankOperator, observations: lo.Observations) -> Tensor:
    """Return the sum of squared residuals by the package's kernel."""
    return observed_squared_loss(op, observations)


def gathered_loss(op: lo.LowRankOperator, observations: lo.Observations) -> Tensor:
    """Return the sum of squared residuals by gathering rows of both factors."""
    left, right = (op.left * op.scale)[observations.rows], op.right[observations.cols]
    return ((left * right).sum(-1) - observations.values).square().sum()


def measure(observations: lo.Observations, rank: int, turns: int, seed: int) -> Timing:
    """Let both forms take turns at one rank."""
    g = torch.Generator().manual_seed(seed)
    m, n = observations.shape
    left, right = (torch.randn(size, rank, generator=g) / rank**0.5 for size in (m, n))
    op = lo.LowRankOperator(left.requires_grad_(), torch.ones(rank), right.requires_grad_())
    forms = (fused_loss, gathered_loss)
    # The first turn compiles and fills caches.
    results = [_turn(form, op, observations)[1] for form in forms]
    times = [[_turn(form, op, observations)[0] for form in forms] for _ in range(turns)]
    (loss, *gradients), (exact, *expected) = results
    differences = [_relative(g, e) for g, e in zip(gradients, expected, strict=True)]
    fused, gathered = ([pair[k] for pair in times] for k in (0, 1))
    return Timing(rank, fused, gathered, _relative(loss, exact), max(differences))


def _turn(
    form: Callable[[lo.LowRankOperator, lo.Observations], Tensor],
    op: lo.LowRankOperator,
    observations: lo.Observations,
) -> tuple[float, list[Tensor]]:
    start = time.perf_counter()
    loss = form(op, observations)
    gradients = torch.autograd.grad(loss, (op.left, op.right))
    return 1e3 * (time.perf_counter() - start), [loss.detach(), *gradients]


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max())


def study(session: Session) -> None:
    """Print the table and write the record."""
    options = session.options
    if session.smoke:
        options.rows, options.cols, options.entries, options.ranks, options.turns = (
            60, 40, 500, [2], 2,
        )  # fmt: skip
    torch.set_num_threads(options.threads or torch.get_num_threads())
    observations = random_observations((options.rows, options.cols), options.entries, options.seed)
    timings = [measure(observations, rank, options.turns, options.seed) for rank in options.ranks]
    print(f"{observations}, {torch.get_num_threads()} threads, {options.turns} turns each")
    print(text_table(HEADER, [timing.row() for timing in timings]))
    settings = {k: x for k, x in vars(options).items() if k not in ("out", "resume", "profile")}
    session.write("kernel_speed.json", settings=settings, timings=[t.record() for t in timings])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--cols", type=int, default=4000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 16, 32, 64, 100])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--seed", type=int, default=0)


main = experiment(study, __doc__, options=_options)

if __name__ == "__main__":
    sys.exit(main())
