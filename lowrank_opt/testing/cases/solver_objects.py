"""Solver objects, called as functions of observations and a rank: the problem is made of traits."""

from __future__ import annotations

import math
from functools import partial

import torch

from lowrank_opt.completion import CompletionProblem, CompletionResult, complete
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations import HomogeneousBall
from lowrank_opt.sets import FeasibleSet, RankAtMost, SchattenBall
from lowrank_opt.solvers import Solver

_PENALTY = 1e-3
# The planted matrices have a nuclear norm of at most 1.6 in this unit.
_RADIUS = 2.0


def as_function(solver: Solver) -> partial[CompletionResult]:
    """Return a solver as ``solve(observations, rank, generator)``."""
    return partial(solve_by_traits, solver=solver)


def solve_by_traits(
    observations: Observations, rank: int, generator: torch.Generator, *, solver: Solver
) -> CompletionResult:
    """Run a solver on a problem that fits its traits.

    Any matrix of the rank, where it takes one; a nuclear ball around the planted matrix, as a
    parameterization or as a set; without biases, if it can do without; with a small penalty, if it
    needs one.
    """
    traits = solver.traits
    problem = CompletionProblem(
        observations,
        _model(solver, observations, rank),
        bias=None if "none" in traits.biases else "additive",
        penalty=_PENALTY if traits.penalty == "needed" else 0.0,
    )
    result = complete(problem, solver=solver, generator=generator)
    return result.to_completion() if isinstance(result, BayesianResult) else result


def set_by_traits(solver: Solver, shape: tuple[int, int], rank: int) -> FeasibleSet:
    """Return the set that results have to be in."""
    sets = solver.traits.sets
    if "rank" in sets:
        return RankAtMost(rank)
    if {"parameterization", "spectral set", "set"} & set(sets):
        return SchattenBall(1, _RADIUS * math.sqrt(math.prod(shape)), rank)
    return RankAtMost(min(shape))


def _model(
    solver: Solver, observations: Observations, rank: int
) -> HomogeneousBall | FeasibleSet | int | None:
    sets, shape = solver.traits.sets, observations.shape
    if "rank" in sets:
        return rank
    ball = set_by_traits(solver, shape, rank)
    if "parameterization" in sets:
        assert isinstance(ball, SchattenBall), "made above"
        return HomogeneousBall(shape, rank, radius=ball.radius, dtype=observations.dtype)
    return ball if isinstance(ball, SchattenBall) else None
