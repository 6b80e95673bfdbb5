"""Check every solver on a GPU against the CPU, and time the passes: one run, one table.

Solvers first: the same problem on the CPU, by the backend that runs on the GPU, and on the GPU; the
largest difference of predictions, relative to their size. Then the time of loss and gradient, and
of half sweeps of least squares, with the bytes that they have to move at least, as a share of what
a copy of a large tensor reaches on the same device in the same run. Without a GPU it says so, and
ends with status 3. Run as ``python -m experiments.gpu_check``; with ``--device cpu`` the same is
done on the CPU, to see that the script works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import lowrank_opt as lo
from experiments.kernel_speed import random_observations
from experiments.records import prepare_folder, write_record
from experiments.tables import text_table
from lowrank_opt.kernels import observed_squared_loss, use_backend
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.solvers import SOLVERS, FirstOrder, Gibbs, MaxNorm, Solver, solver_of

NO_GPU = 3
_SHAPE, _TURNS = (200, 150), 5
# Gibbs and Variational sum in float32.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Parameters
    ----------
    what : str
    milliseconds : float
        Median over turns.
    difference : float or None
        From the CPU, relative; for solvers.
    bandwidth : float or None
        Share of that of a copy, for passes.
    """

    what: str
    milliseconds: float
    difference: float | None = None
    bandwidth: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the results agree."""
        return self.difference is None or self.difference <= _TOLERANCE

    def row(self) -> list[str]:
        """Return the cells."""
        difference = "" if self.difference is None else f"{self.difference:.0e}"
        bandwidth = "" if self.bandwidth is None else f"{self.bandwidth:.2f}"
        return [self.what, f"{self.milliseconds:.2f}", difference, bandwidth]


HEADER = ["what", "ms", "difference from the CPU", "share of copy bandwidth"]


def solver_lines(device: torch.device) -> list[Line]:
    """Return a line for each solver."""
    return [_solver_line(name, device) for name in SOLVERS]


def _solver_line(name: str, device: torch.device) -> Line:
    here = _predictions(name, torch.device("cpu"))
    start = time.perf_counter()
    there = _predictions(name, device)
    milliseconds = 1e3 * (time.perf_counter() - start)
    difference = float((here - there).abs().max() / here.abs().max())
    return Line(name, milliseconds, difference)


def _predictions(name: str, device: torch.device) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    (m, n), entries = _SHAPE, 6000
    left, right = (torch.randn(k, 3, generator=g, dtype=torch.float64) for k in (m, n))
    cells = torch.randperm(m * n, generator=g)[:entries]
    values = (left[cells // n] * right[cells % n]).sum(1)
    noise = torch.randn(entries, generator=g, dtype=torch.float64)
    observed = lo.Observations(cells // n, cells % n, values + 0.1 * noise, _SHAPE)
    solver, model = _posed(name, device)
    most = None if name == "gibbs" else 3
    penalty = 1.0 if solver.traits.penalty == "needed" else 0.0
    with use_backend("torch"):
        result = lo.complete(
            observed.to(device=device),
            model,
            solver=solver,
            penalty=penalty,
            max_iterations=most,
            generator=torch.Generator().manual_seed(0),
        )
    i, j = torch.arange(m, device=device).unsqueeze(1), torch.arange(n, device=device)
    return result.predict(i.expand(m, n), j.expand(m, n)).double().cpu()


def _posed(
    name: str, device: torch.device
) -> tuple[Solver, lo.Parameterization | lo.SchattenBall | int]:
    made: dict[str, Solver] = {
        "gibbs": Gibbs(burn_in=1, samples=2),
        # Adam, the default, divides gradients that are rounding by themselves.
        "first_order": FirstOrder(partial(torch.optim.SGD, lr=1e-4)),
        "max_norm": MaxNorm(radius=9.0),
    }
    solver = made.get(name) or solver_of(name)
    if "parameterization" in solver.traits.sets:
        ball = lo.HomogeneousBall(
            _SHAPE,
            3,
            radius=300.0,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        return solver, ball.to(device)
    ball = lo.SchattenBall(1, 300.0, min(_SHAPE))
    return solver, 3 if "rank" in solver.traits.sets else ball


def pass_lines(
    device: torch.device, shape: tuple[int, int], entries: int, ranks: Sequence[int]
) -> list[Line]:
    """Return lines for loss and gradient, and for half sweeps, at each rank."""
    observed = random_observations(shape, entries, seed=0).to(device=device)
    copied = _copy_bytes_per_millisecond(device)
    lines = list[Line]()
    for rank in ranks:
        g = torch.Generator().manual_seed(1)
        factors = [torch.randn(k, rank, generator=g).to(device) for k in shape]
        # Both factors of an entry, its two indices and its value; the gradient reads them again.
        gathered = len(observed) * (2 * rank * 4 + 20)
        steps = {
            f"loss and gradient, rank {rank}": (_loss(observed, factors), 2 * gathered),
            f"half sweep, rank {rank}": (
                _half_sweep(observed, factors),
                len(observed) * (rank * 4 + 12),
            ),
        }
        for what, (step, moved) in steps.items():
            spent = _median_milliseconds(step, device)
            lines.append(Line(what, spent, bandwidth=moved / spent / copied))
    return lines


def _loss(observed: lo.Observations, factors: list[torch.Tensor]) -> Callable[[], object]:
    left, right = (x.clone().requires_grad_() for x in factors)
    op = lo.LowRankOperator(left, left.new_ones(left.shape[1]), right)
    return lambda: torch.autograd.grad(observed_squared_loss(op, observed), (left, right))


def _half_sweep(observed: lo.Observations, factors: list[torch.Tensor]) -> Callable[[], object]:
    rows = RowProblems.of(observed, observed.csr, torch.float32)
    x, features = factors[0].clone(), factors[1]
    precision = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    strengths = torch.ones(len(x), dtype=torch.float64, device=x.device)
    offsets = features.new_zeros(len(features))
    return lambda: rows.solve(x, features, offsets, precision=precision, strengths=strengths)


def _copy_bytes_per_millisecond(device: torch.device) -> float:
    x = torch.empty(1 << 26 if device.type == "cuda" else 1 << 22, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() * 4 / _median_milliseconds(lambda: y.copy_(x), device)


def _median_milliseconds(step: Callable[[], object], device: torch.device) -> float:
    step()
    turns = list[float]()
    for _ in range(_TURNS):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        turns.append(1e3 * (time.perf_counter() - start))
    return statistics.median(turns)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write the record; return 0, 1 if results differ, 3 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", type=int, nargs=2, default=(100_000, 50_000))
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing was run")
        return NO_GPU
    shape = (options.shape[0], options.shape[1])
    lines = [*solver_lines(device), *pass_lines(device, shape, options.entries, options.ranks)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"on {name}\n{text_table(HEADER, [line.row() for line in lines])}")
    write_record(
        prepare_folder(options.out) / "gpu_check.json",
        device=name,
        lines=[asdict(line) for line in lines],
    )
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
