"""Solvers of the library keep the laws of solvers, and the laws notice broken ones."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pytest

import lowrank_opt as lo
from lowrank_opt.completion import bayesian
from lowrank_opt.testing import SOLVER_LAWS, BrokenLawError, check_solver
from lowrank_opt.testing.search.describe import describe
from tests.property.broken_solvers import BROKEN_SOLVERS, sound


def in_a_nuclear_ball(observations, rank) -> lo.CompletionResult:
    m, n = observations.shape
    W = lo.HomogeneousBall((m, n), rank, radius=2.0 * (m * n) ** 0.5, dtype=observations.dtype)
    return lo.complete(observations, W, bias=None, tolerance=1e-6)


def nuclear_ball(shape, rank) -> lo.SchattenBall:
    m, n = shape
    return lo.SchattenBall(1, 2.0 * (m * n) ** 0.5, rank)


def test_alternating_least_squares() -> None:
    verdicts = check_solver(sound)
    assert [law.name for law in SOLVER_LAWS] == [v.check for v in verdicts]
    assert {"passed", "skipped"} == {v.status for v in verdicts}


@pytest.mark.slow
def test_completion_in_a_ball() -> None:
    verdicts = check_solver(
        in_a_nuclear_ball,
        feasible_set=nuclear_ball,
        profile="quick",
        only=["recovery", "feasibility", "unseen", "certificate"],
    )
    assert {"passed"} == {v.status for v in verdicts}


@pytest.mark.slow
def test_posterior_mean() -> None:
    solve = partial(bayesian, burn_in=30, samples=40)
    verdicts = check_solver(
        solve,
        profile="quick",
        rtol=0.15,
        only=["contract", "recovery", "order", "unseen", "repetition"],
    )
    assert {"passed"} == {v.status for v in verdicts}


@pytest.mark.parametrize(
    ("solve", "law"), BROKEN_SOLVERS, ids=[describe(s) for s, _ in BROKEN_SOLVERS]
)
def test_law_catches_defect_of_a_solver(solve, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_solver(solve, only=[law])
    assert law == caught.value.law


SYMMETRIC = ["contract", "feasibility", "weights", "unseen", "repetition"]


@pytest.mark.parametrize(
    "solver",
    [
        lo.solvers.ALS(tolerance=1e-9),
        lo.solvers.SoftImpute(tolerance=1e-9),
        lo.solvers.GaussNewton(),
        lo.solvers.LBFGS(tolerance=1e-7),
        pytest.param(lo.solvers.FrankWolfe(), marks=pytest.mark.slow),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_problems_of_a_solver_object_are_made_of_its_traits(solver) -> None:
    verdicts = check_solver(solver, profile="quick", only=SYMMETRIC)
    assert {"passed"} == {v.status for v in verdicts}


@dataclass(frozen=True)
class IgnoresWeights:
    """A solver object with a defect."""

    traits: ClassVar[lo.solvers.Traits] = lo.solvers.ALS.traits

    def solve(self, problem, run):
        obs = problem.observations
        plain = lo.Observations(obs.rows, obs.cols, obs.values, obs.shape)
        return lo.solvers.ALS().solve(replace(problem, observations=plain), run)


def test_law_catches_a_defect_of_a_solver_object() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_solver(IgnoresWeights(), only=["weights"], profile="quick")
    assert "weights" == caught.value.law
