"""Completion problems with a known answer, and solvers called alike."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.observations import Observations
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.calls import call, taken
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.oracle import Array, random_frame, to_array
from lowrank_opt.testing.cases.solver_objects import problem_by_traits, solved_by

_SHARE = 0.75
_ORDERS = {1: ("observations",), 2: ("observations", "rank")}
Solve = Callable[..., CompletionResult]


@dataclass(frozen=True)
class SolverTrial:
    """What the laws of solvers work with, in the place of a factory.

    Parameters
    ----------
    written : callable or Solver
        The solver; an object has problems made of its traits.
    feasible_set : callable
        From shape and rank to the set that results have to be in.
    rtol : float
        Allowed error of predictions, relative to the root mean square of the entries.
    options : mapping
        Those of `check_solver` that differ from its defaults, for programs.
    found : dict
        Results on planted problems, which several laws ask for.
    """

    written: Solve | Solver
    feasible_set: Callable[[tuple[int, int], int], FeasibleSet]
    rtol: float

    options: Mapping[str, object] = field(default_factory=dict[str, object])
    found: dict[object, CompletionResult] = field(
        default_factory=dict[object, CompletionResult], compare=False, repr=False
    )

    @property
    def solver(self) -> Solver | None:
        """The solver, if it is an object with traits."""
        return self.written if isinstance(self.written, Solver) else None

    @property
    def takes_rank(self) -> bool:
        """Whether the rank is ours to choose."""
        if isinstance(self.written, Solver):
            return True
        available = dict.fromkeys(self._free("observations", "rank", "generator"))
        return "rank" in taken(self.written, _ORDERS, available)

    def _free(self, *names: str) -> list[str]:
        fixed = self.written.keywords if isinstance(self.written, partial) else {}
        return [name for name in names if name not in fixed]

    def solve(self, observations: Observations, rank: int, *, seed: int) -> CompletionResult:
        """Call the solver with those of observations, rank and generator that it takes."""
        with seeded_start(seed) as generator:
            if isinstance(self.written, Solver):
                problem = problem_by_traits(self.written, observations, rank)
                return solved_by(self.written, problem, generator=generator)
            available = {"observations": observations, "rank": rank, "generator": generator}
            return call(self.written, _ORDERS, {k: available[k] for k in self._free(*available)})


@contextmanager
def seeded_start(seed: int) -> Generator[torch.Generator]:
    """Yield a generator, and seed torch's own, of which parameterizations begin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


SolverCase = Trial[SolverTrial]


@dataclass(frozen=True)
class Planted:
    """A matrix of low rank, some entries of which are observed.

    Parameters
    ----------
    truth : array, shape (m, n)
    observations : Observations
    rank : int
    """

    truth: Array
    observations: Observations
    rank: int

    @property
    def size(self) -> float:
        """Root mean square of the entries."""
        return float(np.sqrt(np.mean(self.truth**2)))

    def restricted(self, kept: torch.Tensor) -> Planted:
        """Return the problem with some of the entries, in that order."""
        obs = self.observations
        parts = obs.rows[kept], obs.cols[kept], obs.values[kept]
        return Planted(self.truth, Observations(*parts, obs.shape), self.rank)


def planted(trial: SolverCase, *, noise: float = 0.0) -> Planted:
    """Return the problem of a case: well-conditioned, three quarters of the entries observed."""
    return _planted(trial, _values(*trial.case.shape, trial.case.rank), noise)


def larger(trial: SolverCase, rows: int, cols: int, rank: int) -> Planted:
    """Return a problem with more rows and columns, of a rank, and of the case's nuclear norm."""
    (m, n), case = trial.case.shape, trial.case
    norm = _values(m, n, case.rank).sum()
    sigma = _values(m + rows, n + cols, rank)
    grown = replace(trial, case=replace(case, shape=(m + rows, n + cols), rank=rank))
    return _planted(grown, sigma * norm / sigma.sum(), 0.0)


def _values(m: int, n: int, rank: int) -> Array:
    """Return singular values that give entries of size one."""
    return np.sqrt(m * n) * np.linspace(1.0, 0.6, rank)


def _planted(trial: SolverCase, sigma: Array, noise: float) -> Planted:
    (m, n), rank, rng = trial.case.shape, trial.case.rank, trial.rng
    truth = (random_frame(m, rank, rng) * sigma) @ random_frame(n, rank, rng).T
    seen = rng.permuted(np.arange(m * n)) < _SHARE * m * n
    rows, cols = np.nonzero(seen.reshape(m, n))
    order = rng.permutation(len(rows))
    rows, cols = rows[order], cols[order]
    values = truth[rows, cols] + noise * rng.standard_normal(len(rows))
    tensors = torch.from_numpy(rows), torch.from_numpy(cols), torch.from_numpy(values)
    observations = Observations(*tensors, (m, n)).to(dtype=trial.dtype, device=trial.device)
    return Planted(truth, observations, rank)


def predictions(result: CompletionResult) -> Array:
    """Return all predictions, shape (m, n)."""
    m, n = result.shape
    rows = torch.arange(m).repeat_interleave(n)
    cols = torch.arange(n).repeat(m)
    return to_array(torch.as_tensor(result.predict(rows, cols))).reshape(m, n)


def difference(found: Array, truth: Array, size: float) -> float:
    """Return the root mean square of a difference, relative to a size."""
    return float(np.sqrt(np.mean((found - truth) ** 2))) / size
