"""Biases without a matrix are a candidate of every choice, and what very few entries leave."""

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion.catalog import SOLVERS
from lowrank_opt.completion.model.bias import fit_additive_bias
from lowrank_opt.estimators import MatrixCompletion
from tests.unit.estimators.cases import ratings

SHAPE = (60, 50)
# By name; a radius is not chosen for the norm of "max_norm".
NAMES = [x for x in SOLVERS if x != "max_norm"]
SLOW = ("frank_wolfe", "lbfgs", "riemannian", "gauss_newton", "singular_value_projection")


def additive(seed: int = 0, count: int = 360) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six noisy entries a row of a matrix that is all biases, and what they would be without."""
    rng = np.random.default_rng(seed)
    m, n = SHAPE
    truth = 3 + 0.7 * rng.normal(size=(m, 1)) + 0.7 * rng.normal(size=(1, n))
    cells = rng.permutation(m * n)[:count]
    pairs = np.stack((cells // n, cells % n), axis=1)
    return pairs, truth.ravel()[cells] + rng.normal(size=count), truth


def error(prediction: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((prediction - truth) ** 2)))


def everywhere() -> np.ndarray:
    return np.stack(np.divmod(np.arange(SHAPE[0] * SHAPE[1]), SHAPE[1]), axis=1)


@pytest.mark.parametrize("solver", NAMES)
def test_no_solver_is_worse_than_the_biases(solver: str):
    pairs, y, truth = additive()
    most = 4 if solver in SLOW else 20
    model = MatrixCompletion(SHAPE, solver=solver, max_iterations=most, random_state=0)
    model.fit(pairs, y)
    bias = fit_additive_bias(lo.Observations(*pairs.T, y, SHAPE), penalty=4.0)
    alone = bias.predict(*map(torch.from_numpy, everywhere().T)).numpy()
    found = model.predict(everywhere())
    assert error(found, truth.ravel()) <= 1.05 * error(alone, truth.ravel())
    assert 0.0 == model.path_.points[-1].setting["rank"]


def test_the_fit_says_that_it_is_biases_alone():
    pairs, y, _ = additive()
    model = MatrixCompletion(SHAPE, solver="soft_impute", random_state=0, warm_start=True)
    model.fit(pairs, y)
    expected = fit_additive_bias(
        lo.Observations(*pairs.T, y, SHAPE), penalty=model.bias_penalty_
    ).predict(*map(torch.from_numpy, pairs.T))
    assert 0 == model.rank_ == model.setting_["rank"]
    assert not model.result_.operator.scale.any()
    np.testing.assert_allclose(expected, model.predict(pairs))
    again = model.fit(pairs, y)
    np.testing.assert_array_equal(model.predict(pairs), again.predict(pairs))
    assert 0 == again.rank_


def test_a_matrix_that_counts_is_kept():
    model = MatrixCompletion(solver="als", random_state=0).fit(*ratings())
    last = model.path_.points[-1]
    assert 0 == last.setting["rank"] < model.rank_
    assert model.path_.best.validation_rmse < 0.5 * last.validation_rmse


@pytest.mark.parametrize("solver", ["gradient", "soft_impute"])
def test_paths_end_with_as_much_regularisation_as_needed(solver: str):
    # Twenty times the entries that biases need, and a matrix of small singular values.
    rng = np.random.default_rng(0)
    m, n = SHAPE
    weak = 0.15 * rng.normal(size=(m, 1)) @ rng.normal(size=(1, n))
    cells = rng.permutation(m * n)[:2400]
    pairs = np.stack((cells // n, cells % n), axis=1)
    y = weak.ravel()[cells] + 0.3 * rng.normal(size=len(cells))
    found = MatrixCompletion(SHAPE, solver=solver, random_state=0).fit(pairs, y)
    assert error(found.predict(everywhere()), weak.ravel()) < 0.8 * np.std(weak)
