"""How close the CPU kernels are to what this machine allows: bandwidth, and the rate of a GEMM.

A kernel that does f operations on b bytes takes at least ``max(b / bandwidth, f / GEMM rate)``: the
bytes are those that have to move at least once, indices of four bytes, every factor once. In each
turn copy, GEMM and all kernels run one after the other, so that what else the machine does falls on
all of them; a kernel's fraction is taken turn by turn. Run as ``python -m experiments.roofline``;
``--profile smoke`` is over in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

import lowrank_opt as lo
from experiments.skeleton import Session, experiment
from experiments.tables import text_table
from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
from lowrank_opt.estimators.ranking import Candidates, best_columns
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.protocol import ModelParts, Needed
from lowrank_opt.kernels.row_solves import RowProblems

_FLOAT = 4
_INDEX = 4
_TOP = 10
# Skew of both sides: the k-th has a share like 1 / (k + 20)^0.8.
_OFFSET, _EXPONENT = 20.0, 0.8


@dataclass(frozen=True)
class Profile:
    """Sizes, and how many turns are taken; `side` is that of the GEMM."""

    shape: tuple[int, int]
    entries: int
    ranks: tuple[int, ...]
    turns: int
    side: int


PROFILES = {
    "smoke": Profile((600, 370), 20_000, (16,), turns=2, side=256),
    "ml1m": Profile((6040, 3706), 1_000_000, (16, 32, 64, 128), turns=7, side=1024),
    "large": Profile((70_000, 20_000), 10_000_000, (16, 32, 64, 128), turns=3, side=1024),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel at a rank, and what it has to do.

    Parameters
    ----------
    name : str
    rank : int
    flops, bytes : float
        At least.
    run : callable
    """

    name: str
    rank: int
    flops: float
    bytes: float
    run: Callable[[], object]

    def bound(self, machine: Machine) -> float:
        """Return the least number of seconds."""
        return max(self.bytes / machine.bandwidth, self.flops / machine.rate)


@dataclass(frozen=True)
class Machine:
    """Bytes and operations in a second, as measured."""

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Line:
    """Milliseconds of each turn, and what share of them the bound is."""

    name: str
    rank: int
    milliseconds: list[float]
    fractions: list[float]

    def row(self) -> list[str]:
        """Return the cells: medians, and quartiles of the fraction."""
        low, middle, high = np.quantile(self.fractions, [0.25, 0.5, 0.75])
        spent = statistics.median(self.milliseconds)
        return [
            self.name,
            str(self.rank),
            f"{spent:.2f}",
            f"{middle:.2f}",
            f"{low:.2f}..{high:.2f}",
        ]


HEADER = ["kernel", "rank", "ms", "of its bound", "quartiles"]


def skewed_observations(shape: tuple[int, int], entries: int, seed: int = 0) -> lo.Observations:
    """Return distinct entries, many of them in a few rows and columns, in random order."""
    rng = np.random.default_rng(seed)
    m, n = shape
    cells = np.empty(0, dtype=np.int64)
    while len(cells) < entries:
        i, j = (rng.choice(k, size=entries, p=_shares(k)) for k in shape)
        cells = np.unique(np.concatenate((cells, i * n + j)))
    cells = rng.permutation(cells)[:entries]
    # Which rows have many is no matter of their position.
    i, j = rng.permutation(m)[cells // n], rng.permutation(n)[cells % n]
    values = rng.standard_normal(entries).astype(np.float32)
    return lo.Observations(i, j, torch.from_numpy(values), shape)


def _shares(size: int) -> np.ndarray:
    shares = (np.arange(size) + _OFFSET) ** -_EXPONENT
    return shares / shares.sum()


def kernels(observed: lo.Observations, rank: int) -> list[Kernel]:
    """Return all kernels at a rank, in float32."""
    (m, n), N = observed.shape, len(observed)
    g = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(k, rank, generator=g) / rank**0.5 for k in (m, n))
    model, sides = ModelParts(left, right), (m + n) * rank * _FLOAT
    wide = ModelParts(*(torch.cat((x, x), 1) for x in (left, right)))
    backend, both = backend_of(observed.device), Needed(left=True, right=True)
    residuals = observed.values

    def gauss_newton() -> None:
        change = backend.entries(wide, observed)
        backend.entries_gradient(model, observed, change, both)

    entry = _INDEX + _FLOAT
    r, packed = float(rank), (rank + 2) * (rank + 3) / 2
    return [
        Kernel(
            "loss and gradients",
            rank,
            6 * N * r,
            N * (2 * entry + _FLOAT) + 2 * sides,
            lambda: backend.squared_loss(model, observed, None, both),
        ),
        Kernel("Gauss-Newton product", rank, 8 * N * r, N * 3 * entry + 4 * sides, gauss_newton),
        Kernel(
            "normal equations",
            rank,
            N * (r * r + 5 * r) + m * r**3 / 3,
            N * entry + sides,
            _normal_equations(observed, left.clone(), right),
        ),
        Kernel(
            "Gaussian rows",
            rank,
            N * 2 * (packed + r) + m * r**3,
            N * (entry + _FLOAT) + (m + n) * packed * _FLOAT,
            _gaussian_rows(observed, left, right),
        ),
        Kernel(
            "sampled products",
            rank,
            2 * N * r,
            N * entry + sides,
            lambda: backend.entries(model, observed),
        ),
        Kernel(
            "products with residuals",
            rank,
            4 * N * r,
            N * 2 * entry + 2 * sides,
            lambda: backend.entries_gradient(model, observed, residuals, both),
        ),
        Kernel(
            "top 10 of each row",
            rank,
            2.0 * m * n * r,
            2.0 * m * n * _FLOAT + sides,
            _top(observed, left, right),
        ),
    ]


def _normal_equations(
    observed: lo.Observations, x: torch.Tensor, features: torch.Tensor
) -> Callable[[], object]:
    rows = RowProblems.of(observed, observed.csr, torch.float32)
    precision = torch.eye(x.shape[1], dtype=torch.float64)
    strengths = torch.ones(len(x), dtype=torch.float64)
    offsets = features.new_zeros(len(features))
    return lambda: rows.solve(x, features, offsets, precision=precision, strengths=strengths)


def _gaussian_rows(
    observed: lo.Observations, left: torch.Tensor, right: torch.Tensor
) -> Callable[[], object]:
    rows = GaussianRows.of(observed, observed.csr, torch.float32)
    own, other = (Moments.of(x, x.new_zeros(len(x))) for x in (left, right))
    size = left.shape[1] + 1
    given = {
        "scales": torch.ones(len(left), dtype=torch.float64),
        "precision": torch.eye(size, dtype=torch.float64),
        "pull": torch.zeros(len(left), size, dtype=torch.float64),
    }
    return lambda: rows.posterior(own, other, **given)


def _top(
    observed: lo.Observations, left: torch.Tensor, right: torch.Tensor
) -> Callable[[], object]:
    (m, n), ones = observed.shape, left.new_ones(left.shape[1])
    bias = AdditiveBias(0.0, left.new_zeros(m), left.new_zeros(n))
    operator = lo.LowRankOperator(left, ones, right)
    result = CompletionResult(operator, bias, CompletionStatus.CONVERGED, History())
    candidates = Candidates(result, observed, torch.ones(n, dtype=torch.bool))
    rows = np.arange(m)
    return lambda: best_columns(candidates, rows, _TOP, exclude_seen=False)


def measured_machine(side: int) -> Machine:
    """Return bandwidth and rate, by one copy of 128 side^2 bytes, and one GEMM of that side."""
    x = torch.ones(side * side * 16)
    y = torch.empty_like(x)
    a = torch.ones(side, side)
    y.copy_(x)
    copied = _seconds(lambda: y.copy_(x))
    torch.mm(a, a)
    multiplied = _seconds(lambda: torch.mm(a, a))
    return Machine(2 * x.numel() * _FLOAT / copied, 2 * side**3 / multiplied)


def measure(all_kernels: Sequence[Kernel], turns: int, side: int) -> tuple[list[Line], Machine]:
    """Let the machine and all kernels take turns; return the lines, and the medians."""
    for kernel in all_kernels:
        kernel.run()
    machines = list[Machine]()
    spent = [list[float]() for _ in all_kernels]
    for _ in range(turns):
        machines.append(measured_machine(side))
        for kernel, times in zip(all_kernels, spent, strict=True):
            times.append(_seconds(kernel.run))
    lines = [
        Line(
            kernel.name,
            kernel.rank,
            [1e3 * t for t in times],
            [kernel.bound(x) / t for x, t in zip(machines, times, strict=True)],
        )
        for kernel, times in zip(all_kernels, spent, strict=True)
    ]
    typical = Machine(*(statistics.median(x) for x in zip(*map(_numbers, machines), strict=True)))
    return lines, typical


def _numbers(machine: Machine) -> tuple[float, float]:
    return machine.bandwidth, machine.rate


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def study(session: Session) -> None:
    """Print the table and write the record."""
    options, profile = session.options, PROFILES[session.options.profile]
    torch.set_num_threads(options.threads or torch.get_num_threads())
    observed = skewed_observations(profile.shape, options.entries or profile.entries)
    listed = [k for rank in options.ranks or profile.ranks for k in kernels(observed, rank)]
    lines, machine = measure(listed, options.turns or profile.turns, profile.side)
    print(
        f"{observed}, {torch.get_num_threads()} threads: {machine.bandwidth / 1e9:.1f} GB/s "
        f"copied, {machine.rate / 1e9:.0f} Gflop/s multiplied"
    )
    print(text_table(HEADER, [line.row() for line in lines]))
    session.write("roofline.json", machine=asdict(machine), lines=[asdict(line) for line in lines])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, nargs="+", help="default: those of the profile")
    parser.add_argument("--entries", type=int, help="default: those of the profile")
    parser.add_argument("--turns", type=int, help="default: those of the profile")
    parser.add_argument("--threads", type=int, help="default: as torch chooses")


main = experiment(study, __doc__, options=_options, profiles=tuple(PROFILES))

if __name__ == "__main__":
    sys.exit(main())
