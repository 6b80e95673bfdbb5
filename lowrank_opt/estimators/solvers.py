"""The solvers an estimator may use: what is chosen for each, from where, and how it is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Protocol, TypeAlias

import torch

from lowrank_opt.completion import CompletionResult, als, bayesian, complete, variational
from lowrank_opt.completion.after.path import Setting, Walk
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.errors import OptionError
from lowrank_opt.estimators.starts import EXPONENT, Bias, largest_penalty, random_start, spread
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import HomogeneousBall, Weighted

AnyResult: TypeAlias = CompletionResult | BayesianResult
CustomSolver: TypeAlias = Callable[..., CompletionResult]

NAMES = ("auto", "als", "gradient", "variational", "bayesian")

_SMALL_RANK, _RANK, _LARGEST_RANK = 8, 12, 32


class Solver(Protocol):
    """Knows its settings, and fits observations with one of them."""

    def first(self, observations: Observations) -> dict[str, float]:
        """Return the setting that a path starts from, heavily regularised."""
        ...

    def walks(self, observations: Observations) -> list[Walk]:
        """Return how a path goes on; walks along given settings are left out by the caller."""
        ...

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        """Fit roughly, for a point of the path."""
        ...

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> AnyResult:
        """Fit in earnest."""
        ...


@dataclass(frozen=True)
class Als(Solver):
    """Alternating least squares with a weighted trace-norm penalty."""

    bias: Bias
    tolerance: float
    max_iterations: int
    seed: int

    def first(self, observations: Observations) -> dict[str, float]:
        largest = largest_penalty(observations, self.bias)
        rank = min(_RANK, *observations.shape)
        return {"penalty": 0.7 * largest, "bias_penalty": 1.0, "rank": float(rank)}

    def walks(self, observations: Observations) -> list[Walk]:
        most = float(min(*observations.shape, _LARGEST_RANK))
        return [
            Walk("penalty", 0.7, steps=3, patience=2),
            Walk("penalty", 0.5, steps=25),
            Walk("bias_penalty", 2.0, steps=3),
            Walk("bias_penalty", 0.5, steps=3),
            Walk("rank", 2.0, steps=2, gain=1e-3, bounds=(1.0, most), whole=True),
            Walk("penalty", 1.2, steps=2),
            Walk("penalty", 1 / 1.2, steps=2),
        ]

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self._fit(observations, setting, start, tolerance=2e-3, sweeps=6)

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        most = self.max_iterations
        return self._fit(observations, setting, start, tolerance=self.tolerance, sweeps=most)

    def _fit(
        self,
        observations: Observations,
        setting: Setting,
        start: CompletionResult | None,
        *,
        tolerance: float,
        sweeps: int,
    ) -> CompletionResult:
        rank, penalty = int(setting["rank"]), setting["penalty"]
        generator = torch.Generator().manual_seed(self.seed)
        return als(
            observations,
            rank,
            penalty=penalty,
            exponent=EXPONENT,
            # The bias has no unit, the penalty that of the values.
            bias_ratio=setting["bias_penalty"] / penalty,
            bias=self.bias,
            start=start or random_start(observations, rank, generator),
            tolerance=tolerance,
            sweeps=sweeps,
            generator=generator,
        )


@dataclass(frozen=True)
class Ball(Solver):
    """L-BFGS on a ball of the nuclear norm, with rows and columns weighted by their counts."""

    bias: Bias
    weighted: bool
    tolerance: float
    max_iterations: int
    seed: int

    def first(self, observations: Observations) -> dict[str, float]:
        m, n = observations.shape
        radius = 0.15 * spread(observations, self.bias) * math.sqrt(m * n)
        rank = min(_RANK, m, n)
        return {"radius": radius, "bias_penalty": 2.0, "rank": float(rank)}

    def walks(self, observations: Observations) -> list[Walk]:
        most = float(min(*observations.shape, _LARGEST_RANK))
        return [
            Walk("radius", 1.4, steps=15),
            Walk("rank", 2.0, steps=2, gain=1e-3, bounds=(1.0, most), whole=True),
        ]

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self._fit(observations, setting, start, tolerance=1e-3, max_iterations=60)

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        tolerance, most = self.tolerance, self.max_iterations
        return self._fit(observations, setting, start, tolerance=tolerance, max_iterations=most)

    def _fit(
        self,
        observations: Observations,
        setting: Setting,
        start: CompletionResult | None,
        *,
        tolerance: float,
        max_iterations: int,
    ) -> CompletionResult:
        ball = self._ball(observations, setting)
        if start is not None:
            ball.assign(_stretched(start, setting), project=True)
        return complete(
            observations,
            ball,
            bias=self.bias,
            bias_penalty=setting["bias_penalty"],
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    def _ball(self, observations: Observations, setting: Setting) -> HomogeneousBall | Weighted:
        ball = HomogeneousBall(
            observations.shape,
            int(setting["rank"]),
            radius=setting["radius"],
            dtype=observations.dtype,
            generator=torch.Generator().manual_seed(self.seed),
        )
        if not self.weighted:
            return ball
        counts = (observations.row_counts, observations.col_counts)
        mean = len(observations)
        weights = [
            (x.clamp_min(1).double() * (len(x) / mean)).pow(-EXPONENT / 2).to(observations.dtype)
            for x in counts
        ]
        return Weighted(ball, *weights)


@dataclass(frozen=True)
class Variational(Solver):
    """The mean of a variational posterior, which finds its own penalties."""

    tolerance: float
    max_iterations: int
    seed: int

    def first(self, observations: Observations) -> dict[str, float]:
        return {"rank": float(min(_SMALL_RANK, *observations.shape))}

    def walks(self, observations: Observations) -> list[Walk]:
        most = float(min(*observations.shape, _LARGEST_RANK))
        return [Walk("rank", 1.5, steps=5, gain=1e-3, bounds=(1.0, most), whole=True)]

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self._fit(observations, setting, min(self.max_iterations, 10))

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self._fit(observations, setting, self.max_iterations)

    def _fit(
        self, observations: Observations, setting: Setting, max_iterations: int
    ) -> CompletionResult:
        return variational(
            observations,
            int(setting["rank"]),
            tolerance=self.tolerance,
            max_iterations=max_iterations,
            generator=torch.Generator().manual_seed(self.seed),
        )


@dataclass(frozen=True)
class Bayesian(Solver):
    """Draws from the posterior, which has no settings but the rank."""

    seed: int
    samples: int

    def first(self, observations: Observations) -> dict[str, float]:
        return {"rank": float(min(16, *observations.shape))}

    def walks(self, observations: Observations) -> list[Walk]:
        return []

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self.refit(observations, setting, start).to_completion()

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> BayesianResult:
        generator = torch.Generator().manual_seed(self.seed)
        rank = int(setting["rank"])
        return bayesian(observations, rank, samples=self.samples, generator=generator)


@dataclass(frozen=True)
class Custom(Solver):
    """A callable of observations and a rank, and of those options that it has parameters for."""

    solve: CustomSolver
    tolerance: float | None
    max_iterations: int | None
    seed: int

    def first(self, observations: Observations) -> dict[str, float]:
        return {"rank": float(min(_SMALL_RANK, *observations.shape))}

    def walks(self, observations: Observations) -> list[Walk]:
        most = float(min(*observations.shape, _LARGEST_RANK))
        return [Walk("rank", 2.0, steps=2, gain=1e-3, bounds=(1.0, most), whole=True)]

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        options = {
            "tolerance": self.tolerance,
            "max_iterations": self.max_iterations,
            "generator": torch.Generator().manual_seed(self.seed),
        }
        known = signature(self.solve).parameters
        given = {k: v for k, v in options.items() if k in known and v is not None}
        return self.solve(observations, int(setting["rank"]), **given)

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        return self.fit(observations, setting, start)


def _stretched(start: CompletionResult, setting: Setting) -> LowRankOperator:
    """Return the start, of at most the rank asked for."""
    rank = int(setting["rank"])
    return start.operator if start.operator.rank <= rank else start.operator.truncate(rank)


def solver_of(
    solver: str | CustomSolver,
    given: Mapping[str, float],
    *,
    bias: Bias,
    weighted: bool,
    tolerance: float | None,
    max_iterations: int | None,
    seed: int,
) -> Solver:
    """Return the solver of that name; "auto" looks at the settings that are given."""
    if callable(solver):
        return Custom(solver, tolerance, max_iterations, seed)
    if solver not in NAMES:
        raise OptionError(f"solver must be one of {NAMES} or a callable; got solver={solver!r}")
    if solver == "auto":
        solver = _best_for(given, bias)
    if solver == "gradient":
        return Ball(bias, weighted, tolerance or 1e-4, max_iterations or 500, seed)
    if solver == "variational":
        return Variational(tolerance or 2e-3, max_iterations or 40, seed)
    if solver == "bayesian":
        return Bayesian(seed, max_iterations or 160)
    return Als(bias, tolerance or 1e-4, max_iterations or 50, seed)


def _best_for(given: Mapping[str, float], bias: Bias) -> str:
    if "radius" in given:
        return "gradient"
    # A variational posterior has biases, and finds its penalties itself.
    return "als" if bias is None or given.keys() & {"penalty", "bias_penalty"} else "variational"
