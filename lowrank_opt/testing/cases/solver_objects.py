"""Solver objects on planted entries: the problem, and the run, are made of their traits."""

from __future__ import annotations

import math
from typing import Any, Unpack

from lowrank_opt.completion import CompletionProblem, CompletionResult, complete
from lowrank_opt.completion.complete import ProblemOptions, RunOptions
from lowrank_opt.completion.model.problem import Model
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.solvers.traits import Kind
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations import HomogeneousBall
from lowrank_opt.sets import FeasibleSet, RankAtMost, SchattenBall
from lowrank_opt.solvers import Solver

_PENALTY = 1e-3
# Of biases: leaves none to a solver that cannot do without.
_NO_BIASES = 1e9
# The planted matrices have a nuclear norm of at most 1.6 in this unit.
_RADIUS = 2.0
# What a model is made as, of what a solver takes.
_KINDS: tuple[Kind, ...] = ("rank", "parameterization", "spectral set", "set", "nothing")


class Changes(ProblemOptions, total=False):
    """What of a problem may be another than the traits suggest."""

    model: Model


def problem_by_traits(
    solver: Solver,
    observations: Observations,
    rank: int,
    *,
    kind: Kind | None = None,
    unit: float = 1.0,
    **changes: Unpack[Changes],
) -> CompletionProblem:
    """Return a problem that a solver takes, but for the changes.

    Any matrix of the rank, where it takes one; a nuclear ball around the planted matrix, as a
    parameterization or as a set, unless another kind is asked for; without biases, if it can do
    without; with a small penalty, if it needs one. Radius and penalty are in a unit.
    """
    traits = solver.traits
    options: dict[str, Any] = {
        "bias": None if "none" in traits.biases else "additive",
        "penalty": unit * _PENALTY if traits.penalty == "needed" else 0.0,
    }
    if "none" not in traits.biases and traits.bias_penalty:
        options["bias_penalty"] = _NO_BIASES
    asked = kind or default_kind(solver)
    options |= {"model": _model(asked, observations, rank, unit), **changes}
    return CompletionProblem(observations, **options)


def solved_by(
    solver: Solver, problem: CompletionProblem, **run: Unpack[RunOptions]
) -> CompletionResult:
    """Return what a solver makes of a problem in a run with these settings."""
    result = complete(problem, solver=solver, **run)
    return result.to_completion() if isinstance(result, BayesianResult) else result


def default_kind(solver: Solver) -> Kind:
    """Return the first of the kinds of models that a solver takes."""
    return next(kind for kind in _KINDS if kind in solver.traits.sets)


def set_of_kind(kind: Kind, shape: tuple[int, int], rank: int, unit: float = 1.0) -> FeasibleSet:
    """Return the set that results have to be in, for a kind of model."""
    if kind == "rank":
        return RankAtMost(rank)
    if kind == "nothing":
        return RankAtMost(min(shape))
    return SchattenBall(1, unit * _RADIUS * math.sqrt(math.prod(shape)), rank)


def _model(
    kind: Kind, observations: Observations, rank: int, unit: float
) -> HomogeneousBall | FeasibleSet | int | None:
    if kind in ("rank", "nothing"):
        return rank if kind == "rank" else None
    ball = set_of_kind(kind, observations.shape, rank, unit)
    if kind != "parameterization":
        return ball
    assert isinstance(ball, SchattenBall), "made above"
    made = HomogeneousBall(observations.shape, rank, radius=ball.radius, dtype=observations.dtype)
    return made.to(device=observations.device)
