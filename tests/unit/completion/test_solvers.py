"""Solvers as objects and by name: what each takes, what it refuses, and what goes on in between."""

from dataclasses import FrozenInstanceError, dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt import completion, solvers
from lowrank_opt.completion.catalog import default_solver, markdown
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.solvers import SOLVERS, Run, Solver, Traits, solver_of, solvers_for
from tests.completion_cases import normal, observe, seeded
from tests.preloaded import ROOT

FREE = ("gauss_newton", "riemannian", "scaled_gd", "singular_value_projection")
BALL = lo.SchattenBall(1, 30.0, 10)


def planted(rank=2, share=0.6):
    return observe(normal(24, rank) @ normal(rank, 18, seed=1), share)


def free(rank=2):
    return lo.Factored((24, 18), rank, dtype=torch.float64, generator=seeded())


def ball():
    return lo.HomogeneousBall((24, 18), 10, radius=30.0, dtype=torch.float64, generator=seeded())


def made(name: str) -> Solver:
    return solvers.MaxNorm(radius=2.0) if name == "max_norm" else solver_of(name)


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_is_a_frozen_value(name: str):
    solver = made(name)
    assert solver == replace(solver)
    assert hash(solver) == hash(replace(solver))
    with pytest.raises(FrozenInstanceError):
        solver.tolerance = 1.0
    assert isinstance(solver, Solver)


@pytest.mark.parametrize(
    ("name", "kind"), [("gradient", solvers.LBFGS), ("bayesian", solvers.Gibbs)]
)
def test_second_names(name: str, kind: type):
    assert kind() == solver_of(name)


@pytest.mark.parametrize("solver", FREE)
def test_fixed_rank_solver_recovers_and_assigns(solver):
    observations, parameterization = planted(), free()
    result = lo.complete(observations, parameterization, solver=solver, bias=None)
    truth = normal(24, 2) @ normal(2, 18, seed=1)
    assert float((result.to_dense() - truth).norm() / truth.norm()) < 1e-3
    torch.testing.assert_close(parameterization().to_dense(), result.operator.to_dense())


@pytest.mark.parametrize("solver", [*FREE, "als"])
def test_fixed_rank_solver_refuses_a_norm_bound(solver):
    with pytest.raises(OptionError, match=r"a rank, any matrix of which it fits; got .* stays in"):
        lo.complete(planted(), ball(), solver=solver)


def test_als_minimises_the_objective_of_complete():
    observations = planted()
    settings = {"penalty": 2.0, "bias_penalty": 3.0, "tolerance": 1e-12, "max_iterations": 3000}
    ours = lo.complete(observations, free(4), **settings)
    alternating = lo.complete(observations, 4, solver="als", generator=seeded(), **settings)
    assert alternating.certificate().gap < 1e-4 * alternating.certificate().objective
    objectives = [x.certificate().objective for x in (ours, alternating)]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6)


@pytest.mark.parametrize("solver", ["sgd", "variational"])
def test_solvers_of_ratings_predict(solver):
    observations = planted(share=0.9)
    parameterization = free().float()
    result = lo.complete(observations, parameterization, solver=solver, generator=seeded(2))
    errors = result.predict(observations.rows, observations.cols) - observations.values
    assert float(errors.square().mean()) < 0.5 * float(observations.values.var())


@pytest.mark.parametrize("solver", ["frank_wolfe", "variational"])
def test_sets_are_handed_over(solver):
    chart = ball()
    result = lo.complete(planted(), chart, solver=solver, generator=seeded(1))
    assert chart.feasible_set.contains(result.operator)
    torch.testing.assert_close(chart().to_dense(), result.operator.to_dense(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (ball(), {}, "LBFGS"),
        (ball(), {"loss": "huber"}, "LBFGS"),
        (BALL, {}, "FrankWolfe"),
        (3, {"penalty": 1.0}, "ALS"),
        (3, {}, "Variational"),
        (3, {"bias": None}, "Variational"),
        (None, {}, "Variational"),
        (None, {"implicit": True}, "Gibbs"),
    ],
)
def test_default_is_the_first_that_takes_the_problem(model, options, expected):
    problem = lo.CompletionProblem(planted(), model, **options)
    assert expected == type(default_solver(problem, Run())).__name__


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (3, {"solver": "newton"}, "solver must be 'lbfgs', .*; got solver='newton'"),
        (3, {"solver": len}, "a name or an object with traits .*; got <built-in function len>"),
        (3, {"solver": solvers.ALS}, "a name or an object with traits"),
        (3, {"solver": "max_norm"}, r"needs radius; .*solvers.MaxNorm\(radius=...\)"),
        (3, {"solver": "riemannian", "loss": "huber"}, "squared loss; got loss='huber': no solver"),
        (
            3,
            {"solver": "als"},
            r"needs a positive penalty; got penalty=0\.0: one of variational,",
        ),
        (3, {"solver": "sgd", "bias": None}, "fits additive biases; got bias=None"),
        (3, {"solver": "sgd", "bias_penalty": 2.0}, "finds the penalty of biases by itself"),
        (3, {"solver": "als", "penalty": 1.0, "implicit": True}, "takes no side information"),
        (3, {"solver": "gibbs", "validation": 0.1}, "takes no validation; got one"),
        (3, {"solver": "frank_wolfe"}, "a bounded set .*; got the rank 3: one of variational,"),
        (3, {"solver": "lbfgs"}, "takes a parameterization; got the rank 3"),
        (3, {"tolerance": 1.0, "solver": "gibbs"}, "Gibbs has the options noise_strength, .*; got"),
        (3, {"loss": "huber"}, "takes a parameterization; got the rank 3: no solver takes it"),
        ("3", {}, "model must be a parameterization, a set, a rank or None; got str"),
        (0, {}, "rank must be a positive integer; got rank=0"),
        (True, {}, "model must be .*; got bool"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(OptionError, match=message):
        lo.complete(planted(), model, **options)


def test_every_misfit_is_said_at_once():
    options = {"loss": "huber", "bias": None, "penalty": 1.0}
    with pytest.raises(OptionError, match=r"squared loss.*; it fits additive.*; it takes no pen"):
        lo.complete(planted(), 3, solver="gibbs", **options)


def test_a_problem_says_everything_itself():
    problem = lo.CompletionProblem(planted(), 2, bias=None)
    result = lo.complete(problem, solver="gauss_newton")
    assert result.status.succeeded
    with pytest.raises(OptionError, match=r"got bias besides: use dataclasses\.replace"):
        lo.complete(problem, bias=None)
    with pytest.raises(OptionError, match="got model besides"):
        lo.complete(problem, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bias": "rows"}, OptionError, "bias must be 'additive' or None"),
        ({"penalty": -1.0}, OptionError, "penalty must be finite and nonnegative"),
        ({"loss": "l2"}, OptionError, "loss must be 'squared'"),
        ({"row_features": [np.ones((3, 2))]}, ShapeError, r"24 lines, .*; got \(3, 2\)"),
        ({"prediction_range": (2.0, 1.0)}, OptionError, "low < high"),
    ],
)
def test_problem_is_validated_when_made(options, error, message):
    with pytest.raises(error, match=message):
        lo.CompletionProblem(planted(), 2, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.ALS(exponent=2.0), "exponent must be in"),
        (lambda: solvers.MaxNorm(radius=0.0), "radius must be positive"),
        (lambda: solvers.FrankWolfe(gap=-1.0), "gap must be finite and nonnegative"),
        (lambda: solvers.Gibbs(samples=0), "samples must be a positive integer"),
        (lambda: solvers.Riemannian(start="random"), "start must be 'stages' or 'spectral'"),
        (lambda: solvers.FirstOrder("sgd"), "optimizer must map a list of tensors"),
        (lambda: solvers.Variational(noise_strength=0.0), "noise_strength"),
        (lambda: Run(patience=0), "patience must be a positive integer"),
    ],
)
def test_options_are_checked_when_made(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@dataclass(frozen=True)
class Mine:
    """A user's solver: alternating least squares from the right."""

    traits: ClassVar[Traits] = Traits(sets=("rank",), penalty="yes")
    sweeps: int = 30

    def solve(self, problem, run):
        penalty = problem.penalty or 1e-3
        inner = solvers.ALS(max_iterations=self.sweeps)
        return inner.solve(replace(problem, penalty=penalty), run)


def test_a_solver_of_ones_own():
    observations = planted()
    result = lo.complete(observations, 2, solver=Mine(), bias=None, generator=seeded())
    assert len(result.history) <= 30
    with pytest.raises(OptionError, match="Mine has the options sweeps; got max_iterations"):
        lo.complete(observations, 2, solver=Mine(), max_iterations=3)


def test_a_function_as_a_solver():
    def mine(problem, run):
        return completion.als(problem.observations, problem.rank, penalty=1.0)

    result = lo.complete(planted(), free(3), solver=solvers.Custom(mine))
    assert 3 == result.operator.rank


def test_callbacks_see_every_iteration():
    seen = []
    result = lo.complete(planted(), free(), callbacks=(seen.append, seen.append))
    assert 2 * len(result.history) == len(seen)


def test_solvers_for_a_problem_take_it():
    for model in (None, 2, BALL, ball(), free()):
        problem = lo.CompletionProblem(planted(), model)
        for name in solvers_for(problem):
            assert not [*made(name).traits.misfits(problem)]


def test_table_has_a_line_for_each_solver():
    lines = markdown().splitlines()
    assert len(SOLVERS) == len(lines) - 2
    assert all(f'`"{name}"`' in line for name, line in zip(SOLVERS, lines[2:], strict=True))


def test_pages_show_the_table():
    for page in ("README.md", "docs/how-to/choose-a-solver.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        between = text.partition("<!-- solver-table -->\n")[2].partition("<!-- /solver-table -->")[
            0
        ]
        assert markdown() == between, "run python docs/tables.py"
