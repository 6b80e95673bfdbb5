"""Nonnegative factors: rows against SciPy's active-set solver, and whole fits."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

import lowrank_opt as lo
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.solvers import ALS
from tests.completion_cases import normal


def problem(seed: int, weighted: bool = False) -> lo.Observations:
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(12 * 9, generator=g)[:60]
    values = torch.rand(60, generator=g, dtype=torch.float64) * 4 - 1
    weights = torch.rand(60, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    return lo.Observations(cells // 9, cells % 9, values, (12, 9), weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_rows_equal_those_of_nnls(seed: int, weighted: bool, row_backend: str):
    """With a ridge: sqrt(w) F over sqrt(s) I, by Lawson and Hanson."""
    obs, F, offsets = problem(seed, weighted), normal(9, 4, seed=seed), normal(9, seed=seed + 9)
    strengths = torch.linspace(0.1, 1.0, 12, dtype=torch.float64)
    x = torch.zeros(12, 4, dtype=torch.float64)
    rows = RowProblems.of(obs, obs.csr, torch.float64)
    given = {"diagonal": F.new_ones(4), "strengths": strengths}
    loss = rows.solve_nonnegative(x, F, offsets, **given, free=0)
    total = 0.0
    for i in range(12):
        here = (obs.rows == i).numpy()
        root = np.ones(here.sum()) if obs.weights is None else obs.weights.numpy()[here] ** 0.5
        cols = obs.cols.numpy()[here]
        A = np.vstack((root[:, None] * F.numpy()[cols], np.eye(4) * float(strengths[i]) ** 0.5))
        target = root * (obs.values.numpy()[here] - offsets.numpy()[cols])
        expected, _ = scipy.optimize.nnls(A, np.concatenate((target, np.zeros(4))))
        np.testing.assert_allclose(x[i], expected, atol=1e-9)
        total += ((A[: len(root)] @ expected - target) ** 2).sum()
    assert total == pytest.approx(loss)


@pytest.mark.parametrize("bias", [None, "additive"])
def test_factors_are_nonnegative_and_the_objective_falls(bias: str | None):
    obs = problem(0)
    settings = {"penalty": 0.1, "bias": bias, "generator": torch.Generator().manual_seed(0)}
    fit = lo.complete(obs, 3, solver=ALS(nonnegative=True, max_iterations=60), **settings)
    assert min(float(x.min()) for x in (fit.operator.left, fit.operator.right)) == 0.0
    history = fit.history.objective
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(history))
    free = lo.complete(obs, 3, solver=ALS(max_iterations=60), **settings)
    assert float(free.operator.left.min()) < 0
    assert free.history.objective[-1] < history[-1]


def test_a_nonnegative_matrix_is_found_again():
    g = torch.Generator().manual_seed(1)
    truth = torch.rand(30, 2, generator=g).double() @ torch.rand(2, 20, generator=g).double()
    seen = torch.rand(30, 20, generator=g) < 0.6
    obs = lo.Observations(*seen.nonzero(as_tuple=True), truth[seen], (30, 20))
    fit = lo.complete(
        obs,
        2,
        solver=ALS(nonnegative=True, tolerance=1e-9),
        penalty=1e-5,
        bias=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert float((fit.to_dense() - truth)[~seen].abs().max()) < 0.02


def test_estimators_take_it(tmp_path):
    rng = np.random.default_rng(0)
    W = rng.random((30, 2)) @ rng.random((2, 20))
    pairs = np.argwhere(rng.random(W.shape) < 0.7)
    model = MatrixCompletion(solver=ALS(nonnegative=True), bias=None, random_state=0)
    model.fit(pairs, W[pairs[:, 0], pairs[:, 1]])
    assert (model.result_.operator.left >= 0).all()
    model.save(tmp_path)
    assert MatrixCompletion.load(tmp_path).solver == ALS(nonnegative=True)
