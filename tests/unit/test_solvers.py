"""`complete(solver=...)`: every solver by its name, what it is given and what it refuses."""

import inspect
from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt import completion
from lowrank_opt.completion.registry import SOLVERS, SolverOptions
from lowrank_opt.errors import OptionError
from tests.completion_cases import normal, observe, seeded

FREE = ("gauss_newton", "riemannian", "scaled_gd", "singular_value_projection")


def planted(rank=2, share=0.6):
    return observe(normal(24, rank) @ normal(rank, 18, seed=1), share)


def free(rank=2):
    return lo.Factored((24, 18), rank, dtype=torch.float64, generator=seeded())


def test_every_name_is_a_function_of_the_package():
    for name in SOLVERS:
        assert callable(getattr(completion, name))


def test_options_are_those_of_complete():
    parameters = inspect.signature(lo.complete).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    # The range becomes part of the loss.
    del defaults["solver"], defaults["prediction_range"]
    assert vars(SolverOptions()) == defaults


@pytest.mark.parametrize("solver", FREE)
def test_fixed_rank_solver_recovers_and_assigns(solver):
    observations, parameterization = planted(), free()
    result = lo.complete(observations, parameterization, solver=solver, bias=None)
    truth = normal(24, 2) @ normal(2, 18, seed=1)
    assert float((result.to_dense() - truth).norm() / truth.norm()) < 1e-3
    torch.testing.assert_close(parameterization().to_dense(), result.operator.to_dense())


@pytest.mark.parametrize("solver", [*FREE, "als"])
def test_fixed_rank_solver_refuses_a_norm_bound(solver):
    ball = lo.HomogeneousBall((24, 18), 2, radius=5.0, dtype=torch.float64)
    with pytest.raises(OptionError, match="fits any matrix of a given rank"):
        lo.complete(planted(), ball, solver=solver, penalty=1.0)


def test_als_minimises_the_objective_of_complete():
    observations = planted()
    settings = {"penalty": 2.0, "bias_penalty": 3.0, "tolerance": 1e-12, "max_iterations": 3000}
    ours = lo.complete(observations, free(4), **settings)
    alternating = lo.complete(observations, free(4), solver="als", **settings)
    assert alternating.certificate().gap < 1e-4 * alternating.certificate().objective
    objectives = [x.certificate().objective for x in (ours, alternating)]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6)


def test_a_callable_is_given_the_rank_and_the_changed_options():
    seen = {}

    def mine(observations, rank, **options):
        seen.update(options, rank=rank)
        return completion.als(observations, rank, penalty=1.0)

    lo.complete(planted(), free(3), solver=mine, tolerance=1e-3)
    assert {"rank": 3, "tolerance": 1e-3} == seen


def test_option_of_its_own_is_bound_beforehand():
    observations = planted()
    with pytest.raises(OptionError, match=r"'max_norm' needs radius.*partial\(max_norm, radius="):
        lo.complete(observations, free(), solver="max_norm")
    bound = partial(completion.max_norm, radius=2.0)
    result = lo.complete(observations, free(), solver=bound, bias=None)
    assert float(result.to_dense().abs().max()) <= 2.0 * (1 + 1e-12)


@pytest.mark.parametrize("solver", ["sgd", "variational"])
def test_solvers_of_ratings_predict(solver):
    observations = planted(share=0.9)
    parameterization = free().float()
    result = lo.complete(observations, parameterization, solver=solver, generator=seeded(2))
    errors = result.predict(observations.rows, observations.cols) - observations.values
    assert float(errors.square().mean()) < 0.5 * float(observations.values.var())


@pytest.mark.parametrize("solver", ["frank_wolfe", "variational"])
def test_sets_are_handed_over(solver):
    ball = lo.HomogeneousBall((24, 18), 10, radius=30.0, dtype=torch.float64)
    result = lo.complete(planted(), ball, solver=solver, bias="additive", generator=seeded(1))
    assert ball.feasible_set.contains(result.operator)
    torch.testing.assert_close(ball().to_dense(), result.operator.to_dense(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "newton"}, "solver must be 'gradient', 'als'"),
        ({"solver": "riemannian", "loss": "huber"}, "solver 'riemannian' takes .*; got loss"),
        ({"solver": "als"}, "'als' needs a positive penalty"),
        ({"solver": "als", "penalty": 1.0, "loss": "huber"}, "'als' takes no loss"),
        ({"solver": "soft_impute"}, "'soft_impute' needs penalty"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        lo.complete(planted(), free(), **options)
