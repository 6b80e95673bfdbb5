"""Completion against closed forms and on real data."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.completion import CompletionResult, CompletionStatus, complete
from lowrank_opt.completion.model.bias import fit_additive_bias
from lowrank_opt.observations import Observations
from problems import movielens
from tests.completion_cases import ball, factored, normal, observe, seeded

Make = Callable[[], lo.Parameterization]


def soft_threshold(matrix: Tensor, threshold: float) -> Tensor:
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U @ torch.diag((sigma - threshold).clamp_min(0)) @ Vh


def ridge_biases(observations: Observations, penalty: float) -> tuple[Tensor, Tensor]:
    """Solve the normal equations of the additive model, dense."""
    (m, n), nnz = observations.shape, len(observations)
    X = torch.zeros(nnz, m + n, dtype=torch.float64)
    X[torch.arange(nnz), observations.rows] = 1
    X[torch.arange(nnz), m + observations.cols] = 1
    w = torch.ones(nnz).double() if observations.weights is None else observations.weights
    mean = (w * observations.values).sum() / w.sum()
    gram = X.T @ (w.unsqueeze(1) * X) + penalty * torch.eye(m + n, dtype=torch.float64)
    solution = torch.linalg.solve(gram, X.T @ (w * (observations.values - mean)))
    return solution[:m], solution[m:]


def test_ridge_on_factors_is_soft_thresholding():
    V = normal(12, 9)
    result = complete(
        observe(V, 1.0), factored((12, 9), 9), bias=None, penalty=2.0, tolerance=1e-12
    )
    torch.testing.assert_close(result.to_dense(), soft_threshold(V, 2.0), rtol=0, atol=1e-5)


def test_nuclear_ball_is_the_projection():
    V = normal(12, 9)
    result = complete(observe(V, 1.0), ball((12, 9), 9, 10.0), bias=None, tolerance=1e-12)
    expected = lo.SchattenBall(1.0, 10.0, 9).project(lo.LowRankOperator.from_dense(V)).to_dense()
    torch.testing.assert_close(result.to_dense(), expected, rtol=0, atol=1e-4)


def test_weights_are_repetitions():
    V = normal(8, 6)
    once, again = observe(V, 0.7), observe(V, 0.7)
    heavy = Observations(again.rows, again.cols, again.values, (8, 6), torch.full((34,), 3.0))
    fits = [
        complete(o, factored((8, 6), 3), bias=None, tolerance=1e-12, penalty=p)
        for o, p in ((once, 1.0), (heavy, 3.0))
    ]
    torch.testing.assert_close(fits[0].to_dense(), fits[1].to_dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("penalty", [0.5, 5.0])
def test_biases_alone_are_a_ridge_regression(penalty: float, weights: bool):
    observations = observe(normal(9, 7), 0.6, weights=weights)
    bias = fit_additive_bias(observations, penalty=penalty)
    rows, cols = ridge_biases(observations, penalty)
    torch.testing.assert_close(bias.rows, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(bias.cols, cols, rtol=0, atol=1e-5)


def test_biases_are_fitted_with_the_factors():
    observations = observe(normal(9, 7), 0.6, weights=True)
    fit = complete(observations, ball((9, 7), 2, 1e-9), bias_penalty=0.5, tolerance=1e-13)
    rows, cols = ridge_biases(observations, 0.5)
    torch.testing.assert_close(fit.bias.rows, rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(fit.bias.cols, cols, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lo.Factored,
        partial(lo.HomogeneousBall, radius=300.0),
        partial(lo.NBLoRA, radius=300.0, p=1),
    ],
    ids=["Factored", "HomogeneousBall", "NBLoRA"],
)
def test_planted_matrix_is_recovered(make: Callable[..., lo.Parameterization], dtype: torch.dtype):
    W = normal(60, 3) @ normal(3, 40, seed=1)
    parameterization = make((60, 40), 3, dtype=dtype, generator=seeded())
    result = complete(observe(W, 0.5), parameterization, bias=None)
    assert result.status.succeeded
    error = (result.to_dense().double() - W).norm() / W.norm()
    assert error < {torch.float32: 1e-5, torch.float64: 1e-8}[dtype]


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_unit_of_the_values_does_not_matter(scale: float):
    W = normal(30, 2) @ normal(2, 20, seed=1)
    fits = [
        complete(observe(s * W, 0.5), ball((30, 20), 2, 40.0 * s), bias_penalty=1.0)
        for s in (1.0, scale)
    ]
    torch.testing.assert_close(fits[1].to_dense() / scale, fits[0].to_dense(), rtol=0, atol=1e-3)


def test_huber_resists_outliers():
    W = 10 * normal(40, 1) @ normal(1, 30, seed=1)
    noisy = observe(W, 0.6)
    values = noisy.values.clone()
    values[::20] += 500.0
    fits = {
        loss: complete(noisy.with_values(values), factored((40, 30), 1), bias=None, loss=loss)
        for loss in ("squared", "huber", "absolute")
    }
    errors = {k: float((fit.to_dense() - W).norm() / W.norm()) for k, fit in fits.items()}
    assert errors["huber"] < 0.02 < 0.2 < errors["squared"]
    assert errors["absolute"] < 0.1


def test_callable_loss_equals_the_named_one():
    observations = observe(normal(9, 7), 0.6)
    fits = [
        complete(observations, ball((9, 7), 2, 5.0), loss=loss, tolerance=1e-9)
        for loss in ("squared", lambda residuals: residuals.square() / 2)
    ]
    torch.testing.assert_close(fits[0].to_dense(), fits[1].to_dense(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "solver", ["first_order", lo.solvers.FirstOrder(partial(torch.optim.Adam, lr=0.03))]
)
def test_first_order_reaches_the_same_objective(solver: object):
    observations = observe(normal(20, 15), 0.7)
    fits = [
        complete(observations, ball((20, 15), 15, 10.0), solver=s, max_iterations=2000)
        for s in ("lbfgs", solver)
    ]
    # Adam ends near its best iterate, which is the one returned.
    objectives = [min(fit.history.objective) for fit in fits]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-3)


def test_lbfgs_never_goes_up():
    history = complete(observe(normal(20, 15), 0.7), ball((20, 15), 5, 10.0)).history
    assert sorted(history.objective, reverse=True) == history.objective


def test_lbfgs_evaluates_the_end_of_a_line_search_once():
    calls = []

    class Counted(lo.HomogeneousBall):
        def factors(self) -> lo.LowRankOperator:
            calls.append(1)
            return super().factors()

    # In float32 the last line search is one against rounding, of a length that the machine decides.
    options = {"dtype": torch.float64, "generator": seeded()}
    parameterization = Counted((20, 15), 5, radius=10.0, **options)
    fit = complete(observe(normal(20, 15), 0.7), parameterization, max_iterations=40)
    assert len(calls) <= 1.5 * len(fit.history)


def test_trained_in_place_and_detached():
    parameterization = ball((9, 7), 2, 5.0)
    before = parameterization.left.detach().clone()
    result = complete(observe(normal(9, 7), 0.9), parameterization)
    assert not torch.equal(before, parameterization.left)
    assert not any(x.requires_grad for x in (*result.operator, result.bias.rows))
    torch.testing.assert_close(parameterization().to_dense(), result.operator.to_dense())
    assert all(p.grad is None for p in parameterization.parameters())


def test_result_does_not_share_memory_with_the_parameterization():
    parameterization = factored((9, 7), 2)
    result = complete(observe(normal(9, 7), 0.9), parameterization, bias=None)
    before = result.to_dense()
    nn.init.zeros_(parameterization.left)
    assert torch.equal(before, result.to_dense())


def test_starts_where_the_parameterization_is():
    W = normal(30, 2) @ normal(2, 20, seed=1)
    parameterization = factored((30, 20), 2).assign(lo.LowRankOperator.from_dense(W, rank=2))
    result = complete(observe(W, 0.5), parameterization, bias=None)
    assert (1, CompletionStatus.EXACT_FIT) == (len(result.history), result.status)


@pytest.mark.parametrize("weighted_out", [False, True])
def test_unseen_row_and_column_are_predicted_by_biases(weighted_out: bool):
    observations = observe(normal(9, 7) + 3, 1.0)
    known = (observations.rows != 4) & (observations.cols != 2)
    if weighted_out:
        w = known.double()
        cells = (observations.rows, observations.cols, observations.values)
        part = Observations(*cells, observations.shape, w)
    else:
        part = observations.take(known)
    result = complete(part, ball((9, 7), 3, 20.0))
    mean = observations.values[known].mean()
    assert float(mean) == pytest.approx(float(result.predict(4, 2)))
    torch.testing.assert_close(result.predict(4, [0, 1]), mean + result.bias.cols[:2])
    torch.testing.assert_close(result.predict([0, 1], 2), mean + result.bias.rows[:2])


def test_frozen_frames_predict_an_unseen_row():
    frame = torch.linalg.qr(normal(6, 2)).Q
    truth = frame @ torch.diag(torch.tensor([5.0, 3.0], dtype=torch.float64)) @ frame.mT
    seen = observe(truth[:5], 1.0)
    observed = Observations(seen.rows, seen.cols, seen.values, (6, 6))
    nested = lo.NestedSVD((frame, frame), factored((2, 2), 2))
    result = lo.complete(observed, nested, bias=None, tolerance=1e-12)
    torch.testing.assert_close(result.to_dense(), truth, rtol=1e-4, atol=1e-4)


def test_zero_rows_for_the_unseen_keep_the_operator_in_the_set():
    observations = observe(normal(9, 7), 0.2)
    parameterization = ball((9, 7), 3, 5.0)
    result = complete(observations, parameterization)
    assert parameterization.feasible_set.contains(result.operator)


def test_no_bias():
    result = complete(observe(normal(9, 7) + 3, 0.5), ball((9, 7), 2, 5.0), bias=None)
    assert (0.0, 0, 0) == (
        result.bias.mean,
        int(result.bias.rows.count_nonzero()),
        int(result.bias.cols.count_nonzero()),
    )


@pytest.mark.parametrize("make", [lambda: ball((1, 1), 1, 1.0), lambda: factored((1, 1), 1)])
def test_one_by_one(make: Make):
    result = complete(Observations([0], [0], [0.25], (1, 1)), make(), bias=None)
    assert 0.25 == pytest.approx(float(result.predict(0, 0)), abs=1e-6)


def test_constant_values_are_fitted_at_once():
    result = complete(Observations([0, 1], [0, 1], [3.0, 3.0], (2, 2)), ball((2, 2), 1, 1.0))
    assert CompletionStatus.EXACT_FIT is result.status
    assert 3.0 == float(result.predict(0, 1))


def test_type_of_the_result():
    assert isinstance(complete(observe(normal(9, 7), 0.7), factored((9, 7), 2)), CompletionResult)


@pytest.mark.realdata
@pytest.mark.parametrize(("fold", "bound"), [(1, 0.925), (2, 0.913)])
def test_movielens_test_error(ml_100k, fold: int, bound: float):
    train, test = movielens.split(f"u{fold}", path=ml_100k)
    parameterization = lo.HomogeneousBall(train.shape, 10, radius=400.0, generator=seeded())
    result = complete(train, parameterization)
    predicted = result.predict(test.rows, test.cols, clip=(1.0, 5.0))
    rmse = (predicted - test.values).square().mean().sqrt()
    assert float(rmse) < bound
