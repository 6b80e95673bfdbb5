"""What an estimator chooses for a solver on held-out entries, told by the solver's traits.

A solver that needs a penalty is searched along penalties, one that takes a norm bound along radii,
any other along ranks; one that holds nothing out, as draws from a posterior, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

from lowrank_opt.completion import CompletionProblem, CompletionResult, complete
from lowrank_opt.completion.after.path import Setting, Walk
from lowrank_opt.completion.catalog import check_fits, option_names, solver_of, with_options
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.errors import OptionError
from lowrank_opt.estimators.choice.biases import (
    BiasesAlone,
    best_biases,
    biases_alone,
    zeros_alone,
)
from lowrank_opt.estimators.choice.starts import (
    EXPONENT,
    Bias,
    largest_penalty,
    random_start,
    spread,
)
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import HomogeneousBall, Weighted
from lowrank_opt.solvers import ALS, LBFGS, Gibbs, SoftImpute, Solver, Variational

if TYPE_CHECKING:
    from lowrank_opt.estimators.choice.callbacks import Watch
    from lowrank_opt.tables.features import Matrix
    from lowrank_opt.tables.ids import Positions

Sides: TypeAlias = "tuple[Sequence[Matrix], Sequence[Matrix]]"
Described: TypeAlias = "tuple[Positions, Positions]"

# No row and no column has side information.
NOBODY: Described = (np.empty(0, np.int64), np.empty(0, np.int64))

_SMALL_RANK, _RANK, _RANK_OF_DRAWS, _LARGEST_RANK = 8, 12, 16, 32
# Factor of the penalty with which the rank grows by half; from which rank on rows are improved by
# conjugate gradients.
_STRONGER, _WIDE = 1.05, 40

_BY_NAME: dict[str, Solver] = {
    "als": ALS(exponent=EXPONENT, tolerance=1e-4, max_iterations=50),
    "gradient": LBFGS(tolerance=1e-4, max_iterations=500, gap=None),
    "variational": Variational(max_iterations=40),
    "bayesian": Gibbs(samples=160),
}


def described_by(side: Sides, shape: tuple[int, int]) -> Described:
    """Return the positions of the rows and of the columns that have side information."""
    rows, cols = (np.arange(size if part else 0) for part, size in zip(side, shape, strict=True))
    return rows, cols


@dataclass(frozen=True)
class Search:
    """The settings that are chosen for a solver, and the problems they make.

    Parameters
    ----------
    solver : Solver
    bias : {"additive"} or None
    weighted : bool
        Whether a norm bound weighs rows and columns by their counts.
    seed : int
    side : pair of sequence of matrix
        Features of rows and of columns.
    watch : Watch, optional
        Is told of each fit.
    ample : int, optional
        Largest rank that is tried, with penalties that grow with the rank.
    loss : {"squared", "ordered_probit"}
    """

    solver: Solver
    bias: Bias
    weighted: bool
    seed: int
    side: Sides = ((), ())
    watch: Watch | None = None
    ample: int | None = None
    loss: Literal["squared", "ordered_probit"] = "squared"

    @property
    def stopped(self) -> bool:
        """Whether no further settings are to be tried."""
        return self.watch is not None and self.watch.stopped

    @property
    def by_penalty(self) -> bool:
        """Whether the penalty is what regularises."""
        return self.solver.traits.penalty == "needed"

    @property
    def by_radius(self) -> bool:
        """Whether a norm bound is what regularises."""
        return not {"rank", "nothing"} & set(self.solver.traits.sets)

    def first(self, observations: Observations) -> dict[str, float]:
        """Return the setting that a path starts from, heavily regularised."""
        (m, n), bias = observations.shape, self.bias
        rank = float(min(_RANK, m, n, self.ample or _RANK))
        if self.by_penalty:
            exponent = float(getattr(self.solver, "exponent", 0.0))
            penalty = 0.7 * largest_penalty(observations, bias, exponent)
            return {"penalty": penalty, "bias_penalty": 1.0, "rank": rank}
        if self.by_radius:
            radius = 0.15 * spread(observations, bias) * math.sqrt(m * n)
            return {"radius": radius, "bias_penalty": 2.0, "rank": rank}
        small = _SMALL_RANK if self.solver.traits.validation else _RANK_OF_DRAWS
        return {"rank": float(min(small, m, n))}

    def walks(self, observations: Observations) -> list[Walk]:
        """Return how a path goes on; walks along given settings are left out by the caller."""
        most = float(min(*observations.shape, self.ample or _LARGEST_RANK))
        doubled = Walk("rank", 2.0, steps=2, gain=1e-3, bounds=(1.0, most), whole=True)
        if self.ample is not None:
            # More directions of the same strength would follow more of the noise.
            doubled = doubled._replace(factor=1.5, steps=8, also=("penalty", _STRONGER))
        if self.by_penalty:
            return [
                Walk("penalty", 0.7, steps=3, patience=2),
                Walk("penalty", 0.5, steps=25),
                Walk("bias_penalty", 2.0, steps=3),
                Walk("bias_penalty", 0.5, steps=3),
                doubled,
                Walk("penalty", 1.2, steps=2),
                Walk("penalty", 1 / 1.2, steps=2 if self.ample is None else 8),
            ]
        if self.by_radius:
            return [
                Walk("radius", 1.4, steps=15),
                Walk("radius", 1 / 1.4, steps=15),
                Walk("bias_penalty", 2.0, steps=3),
                Walk("bias_penalty", 0.5, steps=3),
                doubled,
            ]
        if not self.solver.traits.validation:
            return []
        if isinstance(self.solver, Variational):
            return [Walk("rank", 1.5, steps=5, gain=1e-3, bounds=(1.0, most), whole=True)]
        return [doubled]

    def alone(
        self, kept: Observations, held_out: Observations, given: Setting
    ) -> BiasesAlone | None:
        """Return the best biases alone, zeros for a model that has none.

        None for one that is to predict by side information.
        """
        if any(self.side):
            return None
        if self.bias is None:
            return zeros_alone(kept, held_out)
        return best_biases(kept, held_out, given.get("bias_penalty"))

    def told(self, setting: Setting, result: CompletionResult) -> CompletionResult:
        """Return a result that came in one step, after the watch was told."""
        if self.watch is not None:
            with self.watch.fitting(setting) as (_, done):
                done(result)
        return result

    def fit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionResult:
        """Fit roughly, for a point of the path."""
        result = self.draw(observations, setting, start)
        return result.to_completion() if isinstance(result, BayesianResult) else result

    def draw(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> AnyResult:
        """Fit roughly, and return what the solver does: draws stay draws."""
        solver = rough(self.solver)
        if self.ample is not None and isinstance(solver, ALS):
            # Fits of larger ranks settle later, and would be judged too soon.
            solver = replace(solver, tolerance=3e-4, max_iterations=15)
        return self._solve(solver, observations, setting, start)

    def refit(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> AnyResult:
        """Fit in earnest; with the rank zero, biases alone."""
        return self._solve(self.solver, observations, setting, start)

    def _solve(
        self,
        solver: Solver,
        observations: Observations,
        setting: Setting,
        start: CompletionResult | None,
    ) -> AnyResult:
        if setting["rank"] == 0:
            penalty = None if self.bias is None else setting["bias_penalty"]
            return self.told(setting, biases_alone(observations, penalty))
        generator = torch.Generator().manual_seed(self.seed)
        problem = self._problem(observations, setting, start)
        if isinstance(solver, ALS) and self.ample is not None and setting["rank"] >= _WIDE:
            solver = replace(solver, method="cg")
        if isinstance(solver, ALS) and start is None:
            start = random_start(observations, int(setting["rank"]), generator)
        begin = start if solver.traits.start else None
        if self.watch is None:
            return complete(problem, solver=solver, generator=generator, start=begin)
        with self.watch.fitting(setting) as (report, done):
            result = complete(
                problem, solver=solver, generator=generator, start=begin, callbacks=(report,)
            )
            done(result)
        return result

    def _problem(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> CompletionProblem:
        model = self._ball(observations, setting, start) if self.by_radius else int(setting["rank"])
        return CompletionProblem(
            observations,
            model,
            loss=self.loss,
            bias=self.bias,
            penalty=setting.get("penalty", 0.0),
            bias_penalty=setting.get("bias_penalty", 1.0),
            row_features=self.side[0],
            col_features=self.side[1],
        )

    def _ball(
        self, observations: Observations, setting: Setting, start: CompletionResult | None
    ) -> HomogeneousBall | Weighted:
        """Return a ball of the nuclear norm, at the start where there is one."""
        ball = HomogeneousBall(
            observations.shape,
            int(setting["rank"]),
            radius=setting["radius"],
            dtype=observations.dtype,
            generator=torch.Generator().manual_seed(self.seed),
        ).to(observations.device)
        chart = Weighted(ball, *_weights(observations)) if self.weighted else ball
        if start is not None:
            _ = chart.assign(_stretched(start, setting), project=True)
        return chart


def rough(solver: Solver) -> Solver:
    """Return a copy of a solver that gets near its end soon, for the points of a path."""
    match solver:
        case ALS():
            most = min(solver.max_iterations, 6)
            tolerance = max(solver.tolerance, 2e-3)
            return replace(solver, tolerance=tolerance, max_iterations=most, gap=None)
        case LBFGS():
            most = min(solver.max_iterations, 60)
            tolerance = max(solver.tolerance, 1e-3)
            return replace(solver, tolerance=tolerance, max_iterations=most, gap=None)
        case SoftImpute():
            return replace(solver, tolerance=max(solver.tolerance, 1e-3), gap=None)
        case Variational():
            return replace(solver, max_iterations=min(solver.max_iterations, 10))
        case Gibbs():
            return replace(solver, samples=max(solver.samples // 2, 1))
        case _:
            return solver


def check_levels(search: Search, observations: Observations) -> None:
    """Raise OptionError unless a solver takes values as levels, where they are said to be.

    Only draws predict by thresholds of their own; another solver's biases would be no predictions
    of values where a row or a column is unknown.
    """
    if search.loss == "squared":
        return
    if not isinstance(search.solver, Gibbs):
        raise OptionError(
            f"loss={search.loss!r} is for solver='bayesian'; got {type(search.solver).__name__}: "
            "leave the solver out, or use lowrank_opt.complete"
        )
    problem = CompletionProblem(observations, 1, loss=search.loss, bias=search.bias)
    check_fits(search.solver, problem)


def chosen_solver(
    solver: str | Solver,
    given: Mapping[str, float],
    *,
    bias: Bias,
    tolerance: float | None,
    max_iterations: int | None,
) -> Solver:
    """Return the solver of an estimator; "auto" looks at the settings that are given.

    Raises
    ------
    OptionError
        If it is none, or has no such option.
    """
    if solver == "auto":
        solver = _best_for(given, bias)
    made = _BY_NAME[solver] if isinstance(solver, str) and solver in _BY_NAME else solver_of(solver)
    draws = "samples" in option_names(made)
    counts = {"samples" if draws else "max_iterations": max_iterations}
    return with_options(made, tolerance=tolerance, **counts)


def _best_for(given: Mapping[str, float], bias: Bias) -> str:
    if "radius" in given:
        return "gradient"
    # A variational posterior has biases, and finds its penalties itself.
    return "als" if bias is None or given.keys() & {"penalty", "bias_penalty"} else "variational"


def _weights(observations: Observations) -> list[torch.Tensor]:
    counts, total = (observations.row_counts, observations.col_counts), len(observations)
    return [
        (x.clamp_min(1).double() * (len(x) / total)).pow(-EXPONENT / 2).to(observations.dtype)
        for x in counts
    ]


def _stretched(start: CompletionResult, setting: Setting) -> LowRankOperator:
    """Return the start, of at most the rank asked for."""
    rank = int(setting["rank"])
    return start.operator if start.operator.rank <= rank else start.operator.truncate(rank)
