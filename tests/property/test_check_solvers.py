"""Solvers of the library keep the laws of solvers, and the laws notice broken ones."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import ClassVar

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import bayesian
from lowrank_opt.completion.catalog import SOLVERS
from lowrank_opt.testing import SOLVER_LAWS, BrokenLawError, check_solver
from lowrank_opt.testing.search.describe import describe
from tests.property.broken_solver_traits import ALWAYS_BIASED, BROKEN_TRAITS, MODEST, NOWHERE
from tests.property.broken_solvers import BROKEN_SOLVERS, sound
from tests.property.programs import raises_again


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
    raises_again(caught.value, make=solve)


SYMMETRIC = ["contract", "feasibility", "weights", "unseen", "repetition"]


@pytest.mark.parametrize(
    "solver",
    [
        lo.solvers.ALS(tolerance=1e-9),
        lo.solvers.SoftImpute(tolerance=1e-6),
        lo.solvers.GaussNewton(),
        lo.solvers.LBFGS(),
        # The planted rank binds: the gap stays open, however long it goes on.
        pytest.param(lo.solvers.FrankWolfe(max_iterations=20), marks=pytest.mark.slow),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_problems_of_a_solver_object_are_made_of_its_traits(solver) -> None:
    verdicts = check_solver(solver, profile="quick", only=SYMMETRIC)
    assert {"passed"} == {v.status for v in verdicts}


@pytest.mark.parametrize(
    ("solver", "law"),
    [
        # What is held out to choose the number of epochs depended on it.
        (lo.solvers.SGD(), "order"),
        # A bad minimum of a rank that binds.
        pytest.param(lo.solvers.LBFGS(), "weighted_loss", marks=pytest.mark.slow),
    ],
)
def test_law_that_once_was_broken_holds(solver, law) -> None:
    verdicts = check_solver(
        solver, profile="quick", only=[law], rtol=0.3 if law == "order" else 0.05
    )
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


@dataclass(frozen=True)
class PenalisesInUnitsOfOne:
    """A solver object with a defect."""

    traits: ClassVar[lo.solvers.Traits] = lo.solvers.ALS.traits

    def solve(self, problem, run):
        return lo.solvers.ALS().solve(replace(problem, penalty=1e-3), run)


@dataclass(frozen=True)
class RoundsBeforeItCentres:
    """A solver object with a defect."""

    traits: ClassVar[lo.solvers.Traits] = lo.solvers.ALS.traits

    def solve(self, problem, run):
        rounded = problem.observations.to(dtype=torch.float32).to(dtype=torch.float64)
        return lo.solvers.ALS().solve(replace(problem, observations=rounded), run)


@pytest.mark.parametrize(
    ("solver", "law"), [(PenalisesInUnitsOfOne(), "units"), (RoundsBeforeItCentres(), "offsets")]
)
def test_law_catches_units_and_offsets_that_count(solver, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_solver(solver, only=[law], profile="quick")
    assert law == caught.value.law


TRAITS = [field.name for field in fields(lo.solvers.Traits)]
TRAIT_LAWS = [law.name for law in SOLVER_LAWS if law.name.startswith("trait_")]
# Two traits are what other laws are about.
OTHER_LAWS = {"weights": "weighted_loss", "certificate": "certificate"}


def law_of(trait: str) -> str:
    return OTHER_LAWS.get(trait, f"trait_{trait}")


def test_every_trait_has_a_law() -> None:
    assert {law.name for law in SOLVER_LAWS} >= {law_of(trait) for trait in TRAITS}


def test_every_law_of_a_trait_has_a_defect_that_it_notices() -> None:
    broken = {name.split(",")[0] for name in BROKEN_TRAITS} | {"weights"}
    assert set(TRAITS) == broken


@pytest.mark.parametrize("name", BROKEN_TRAITS)
def test_law_catches_a_trait_that_is_not_kept(name: str) -> None:
    law = law_of(name.split(",")[0])
    with pytest.raises(BrokenLawError) as caught:
        check_solver(BROKEN_TRAITS[name], only=[law], profile="quick")
    assert law == caught.value.law


# What is no fault of theirs, by solver.
LOOSE = {"SGD": 0.3, "Gibbs": 0.15, "Variational": 0.15, "FirstOrder": 0.1}
KNOWN = {"Gibbs": {"trait_sets": "a mean of matrices of a rank has a larger one"}}


every_solver = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind is lo.solvers.FirstOrder else [])
        for kind in SOLVERS.values()
    ],
    ids=lambda kind: kind.__name__,
)


@every_solver
def test_solvers_of_the_library_keep_their_traits(kind) -> None:
    name = kind.__name__
    solver = kind(radius=30.0) if kind is lo.solvers.MaxNorm else kind()
    verdicts = check_solver(
        solver,
        profile="quick",
        only=TRAIT_LAWS,
        rtol=LOOSE.get(name, 0.05),
        expected_failures=KNOWN.get(name),
    )
    passed = {v.check for v in verdicts if v.status == "passed"}
    declared = {law_of(t) for t in TRAITS if getattr(kind.traits, t) not in (False, "no")}
    # The squared loss is that of all other laws.
    silent = {"trait_losses"} if kind.traits.losses != "any" else set()
    assert (declared & set(TRAIT_LAWS)) - silent == passed | set(KNOWN.get(name, {}))


@every_solver
def test_unit_and_zero_of_the_values_make_no_difference(kind) -> None:
    solver = kind(radius=30.0) if kind is lo.solvers.MaxNorm else kind()
    verdicts = check_solver(solver, profile="quick", only=["units", "offsets"])
    assert {"passed"} == {v.status for v in verdicts}


@pytest.mark.parametrize("name", MODEST)
def test_solver_of_few_traits_is_checked_for_these(name: str) -> None:
    solver, left_out = MODEST[name]
    verdicts = check_solver(solver, profile="quick", on_fail="collect")
    skipped = {v.check for v in verdicts if v.status == "skipped"}
    assert not [v for v in verdicts if v.status == "failed"]
    assert left_out <= skipped
    assert {"contract", "recovery", "feasibility", "order"}.isdisjoint(skipped)


def test_solver_for_a_device_that_is_not_there_is_not_refused() -> None:
    verdicts = check_solver(NOWHERE, dtype=torch.float64, device="cpu", only=["contract"])
    assert [("skipped", "the solver does not compute on the cpu")] == [
        (v.status, v.message) for v in verdicts
    ]


def test_solver_that_cannot_do_without_biases_is_checked() -> None:
    verdicts = check_solver(ALWAYS_BIASED, only=["contract", "recovery", "trait_biases"])
    assert {"passed"} == {v.status for v in verdicts}


def test_program_of_a_solver_object_raises_again() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_solver(lo.solvers.ALS(max_iterations=1), only=["recovery"], profile="quick")
    with pytest.raises(BrokenLawError):
        exec(caught.value.code, {})
