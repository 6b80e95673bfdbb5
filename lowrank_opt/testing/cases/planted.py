"""Completion problems with a known answer, and solvers called alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.calls import call
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.oracle import Array, random_frame, to_array

_SHARE = 0.75
_ORDERS = {1: ("observations",), 2: ("observations", "rank")}
Solve = Callable[..., CompletionResult]


@dataclass(frozen=True)
class SolverTrial:
    """What the laws of solvers work with, in the place of a factory.

    Parameters
    ----------
    written : callable
        The solver.
    feasible_set : callable
        From shape and rank to the set that results have to be in.
    rtol : float
        Allowed error of predictions, relative to the root mean square of the entries.
    """

    written: Solve
    feasible_set: Callable[[tuple[int, int], int], FeasibleSet]
    rtol: float

    def __call__(self, shape: tuple[int, int], rank: int) -> Parameterization:
        """Refuse: solvers make no parameterization."""
        raise NotImplementedError(f"a solver makes no parameterization; asked for {shape}, {rank}")

    def solve(self, observations: Observations, rank: int, *, seed: int) -> CompletionResult:
        """Call the solver with those of observations, rank and generator that it takes."""
        generator = torch.Generator().manual_seed(seed)
        available = {"observations": observations, "rank": rank, "generator": generator}
        fixed: Mapping[str, object] = (
            self.written.keywords if isinstance(self.written, partial) else {}
        )
        left = {k: v for k, v in available.items() if k not in fixed}
        with torch.random.fork_rng(devices=[]):
            # For solvers that make a parameterization at a random start.
            torch.manual_seed(seed)
            return call(self.written, _ORDERS, left)


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


def planted(subject: Subject, *, noise: float = 0.0) -> Planted:
    """Return the problem of a case: well-conditioned, three quarters of the entries observed."""
    (m, n), rank, rng = subject.case.shape, subject.case.rank, subject.rng
    sigma = np.sqrt(m * n) * np.linspace(1.0, 0.6, rank)
    truth = (random_frame(m, rank, rng) * sigma) @ random_frame(n, rank, rng).T
    seen = rng.permuted(np.arange(m * n)) < _SHARE * m * n
    rows, cols = np.nonzero(seen.reshape(m, n))
    order = rng.permutation(len(rows))
    rows, cols = rows[order], cols[order]
    values = truth[rows, cols] + noise * rng.standard_normal(len(rows))
    tensors = torch.from_numpy(rows), torch.from_numpy(cols), torch.from_numpy(values)
    observations = Observations(*tensors, (m, n)).to(dtype=subject.dtype, device=subject.device)
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
