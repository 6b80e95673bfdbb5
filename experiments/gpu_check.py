"""Check every solver and kernel on a GPU against the CPU, and time the passes: one run, one table.

Solvers first: the same problem on the CPU, by the backend that runs on the GPU, and on the GPU; the
largest difference of predictions, relative to their size; an estimator too. Where Triton is
installed, its kernels next, against plain torch in float64 on the GPU. Then, for each backend, the
time of loss and gradient, and of half sweeps of least squares, with the bytes of the cost model of
the kernels, as a share of what a copy of a large tensor reaches on the same device in the same run;
those of Triton are replayed from a CUDA graph too, which shows that nothing waits for the host.
Without a GPU it says so, and ends with status 3. Run as ``python -m experiments.gpu_check``; with
``--device cpu`` the same is done on the CPU, to see that the script works.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec

import torch

import lowrank_opt as lo
from experiments.kernel_speed import random_observations
from experiments.skeleton import Session, experiment
from experiments.tables import text_table
from lowrank_opt.kernels import observed_squared_loss, use_backend
from lowrank_opt.kernels.backend import BackendName, backend_of
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.protocol import Ranked, RowEntries
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.kernels.tiles import cost
from lowrank_opt.kernels.tiles.sizes import ALIGNED
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


def estimator_line(device: torch.device) -> Line:
    """Return a line for an estimator, which fits where the values are."""
    from lowrank_opt.estimators import MatrixCompletion  # scikit-learn, which may be missing

    observed = random_observations(_SHAPE, 6000, seed=0)
    pairs, found = torch.stack((observed.rows, observed.cols), 1), list[torch.Tensor]()
    start = 0.0
    for there in (torch.device("cpu"), device):
        start = time.perf_counter()
        model = MatrixCompletion(
            _SHAPE, solver="als", rank=3, penalty=1.0, max_iterations=3, random_state=0
        )
        model.fit(pairs, observed.values.to(there))
        found.append(torch.as_tensor(model.predict(pairs)).double())
    difference = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    return Line("estimator: als", 1e3 * (time.perf_counter() - start), difference)


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


def kernel_lines(
    device: torch.device, ranks: Sequence[int], rows: int = 30_000, entries: int = 300_000
) -> list[Line]:
    """Return a line for each operation of the Triton kernels and each rank, on long rows."""
    observed = random_observations((rows, 20), entries, seed=0).to(device=device)
    lines = list[Line]()
    for rank in ranks:
        for name, run in _operations(observed, rank).items():
            with use_backend("torch"):
                expected = run(torch.float64)
            with use_backend("triton"):
                start = time.perf_counter()
                found = run(torch.float32)
                milliseconds = 1e3 * (time.perf_counter() - start)
            difference = float((expected - found).abs().max() / expected.abs().max())
            lines.append(Line(f"triton: {name}, rank {rank}", milliseconds, difference))
    return lines


def _operations(
    observed: lo.Observations, rank: int
) -> dict[str, Callable[[torch.dtype], torch.Tensor]]:
    # By columns, which are long.
    flipped = lo.Observations(
        observed.cols, observed.rows, observed.values, (observed.shape[1], observed.shape[0])
    )
    g = torch.Generator().manual_seed(1)
    factors = [torch.randn(k, rank, generator=g).to(observed.device) for k in flipped.shape]

    def loss_and_gradient(dtype: torch.dtype) -> torch.Tensor:
        parts = _loss(flipped, [x.to(dtype) for x in factors])()
        return torch.cat([x.flatten() for x in parts]).double()

    def half_sweep(dtype: torch.dtype) -> torch.Tensor:
        return _half_sweep(flipped, factors, dtype)().double()

    def posterior(dtype: torch.dtype) -> torch.Tensor:
        rows = GaussianRows.of(flipped, flipped.csr, dtype)
        own, other = (Moments.of(x.to(dtype), x[:, 0].to(dtype)) for x in factors)
        m, prior = len(factors[0]), torch.eye(rank + 1, dtype=torch.float64).to(flipped.device)
        scales, pull = prior.new_ones(m), prior.new_zeros(m, rank + 1)
        rows.posterior(own, other, scales=scales, precision=prior, pull=pull)
        return own.means.double()

    def ranking(dtype: torch.dtype) -> torch.Tensor:
        lines, cols = factors[0].to(dtype), factors[1].to(dtype)
        none = torch.empty(0, dtype=torch.int64, device=cols.device)
        allowed = torch.ones(len(cols), dtype=torch.bool, device=cols.device)
        given = Ranked(lines, cols, cols.sum(1), allowed, (none, none))
        return backend_of(cols.device).best_columns(given, 10)[0].double()

    return {
        "loss and gradient": loss_and_gradient,
        "half sweep": half_sweep,
        "posterior": posterior,
        "ranking": ranking,
    }


def pass_lines(
    device: torch.device,
    shape: tuple[int, int],
    entries: int,
    ranks: Sequence[int],
    backend: BackendName,
) -> list[Line]:
    """Return lines for loss and gradient, and for half sweeps, at each rank."""
    observed = random_observations(shape, entries, seed=0).to(device=device)
    copied = _copy_bytes_per_millisecond(device)
    lines = list[Line]()
    for rank in ranks:
        g = torch.Generator().manual_seed(1)
        factors = [torch.randn(k, rank, generator=g).to(device) for k in shape]
        sizes = cost.Sizes(len(observed), *shape, rank + -rank % ALIGNED)
        steps = {
            "loss and gradient": (_loss(observed, factors), cost.loss_and_gradient(sizes)),
            "half sweep": (
                _half_sweep(observed, factors, torch.float32),
                cost.half_sweep(sizes),
            ),
        }
        for name, (step, moved) in steps.items():
            with use_backend(backend):
                spent = _median_milliseconds(step, device)
                lines.append(_timed(f"{backend}: {name}, rank {rank}", spent, moved, copied))
        if backend == "triton" and device.type == "cuda":
            spent = _replayed_milliseconds(observed, factors, device)
            lines.append(
                _timed(
                    f"triton: half sweep from a CUDA graph, rank {rank}",
                    spent,
                    cost.half_sweep(sizes),
                    copied,
                )
            )
    return lines


def _timed(what: str, milliseconds: float, moved: int, copied: float) -> Line:
    return Line(what, milliseconds, bandwidth=moved / milliseconds / copied)


def _replayed_milliseconds(
    observed: lo.Observations, factors: list[torch.Tensor], device: torch.device
) -> float:
    """Capture a half sweep, from entries to losses on the device, and replay it."""
    rows = RowProblems.of(observed, observed.csr, torch.float32)
    x, features = factors[0].clone(), factors[1]
    one = torch.eye(x.shape[1], dtype=torch.float64, device=device)
    settings = {"scale": 1.0, "precision": one, "strengths": one.new_ones(len(x))}
    with use_backend("triton"):
        backend = backend_of(device)
    entries = (RowEntries(rows.axis, rows.values, rows.weights), x, features, features[:, 0] * 0)
    step = partial(backend.solve_rows, *entries, **settings, pull=None, noise=None)
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return _median_milliseconds(graph.replay, device)


def _loss(
    observed: lo.Observations, factors: list[torch.Tensor]
) -> Callable[[], tuple[torch.Tensor, ...]]:
    left, right = (x.clone().requires_grad_() for x in factors)
    op = lo.LowRankOperator(left, left.new_ones(left.shape[1]), right)
    return lambda: torch.autograd.grad(observed_squared_loss(op, observed), (left, right))


def _half_sweep(
    observed: lo.Observations, factors: list[torch.Tensor], dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    rows = RowProblems.of(observed, observed.csr, dtype)
    x, features = (factor.to(dtype, copy=True) for factor in factors)
    precision = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    strengths = torch.ones(len(x), dtype=torch.float64, device=x.device)
    offsets = features.new_zeros(len(features))

    def step() -> torch.Tensor:
        rows.solve(x, features, offsets, precision=precision, strengths=strengths)
        return x

    return step


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


def study(session: Session) -> int:
    """Run, print, and write the record; return 0, 1 if results differ, 3 without a GPU."""
    options, device = session.options, torch.device(session.options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing was run")
        return NO_GPU
    m, n, entries, ranks = *options.shape, options.entries, options.ranks
    if session.smoke:
        m, n, entries, ranks = 40, 30, 300, [2]
    lines = solver_lines(device)
    lines += [estimator_line(device)] if find_spec("sklearn") is not None else []
    triton = device.type == "cuda" and find_spec("triton") is not None
    lines += kernel_lines(device, [8, *ranks, 128]) if triton else []
    backends: tuple[BackendName, ...] = ("torch", "triton") if triton else ("torch",)
    for backend in backends:
        lines += pass_lines(device, (m, n), entries, ranks, backend)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"on {name}\n{text_table(HEADER, [line.row() for line in lines])}")
    session.write("gpu_check.json", device=name, lines=[asdict(line) for line in lines])
    return 0 if all(line.holds for line in lines) else 1


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", type=int, nargs=2, default=(100_000, 50_000))
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])


main = experiment(study, __doc__, options=_options, profiles=("smoke", "gpu"))

if __name__ == "__main__":
    sys.exit(main())
