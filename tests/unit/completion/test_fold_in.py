"""Folding in: dense normal equations, als itself, and a refit are the oracles."""

from dataclasses import replace

import pytest
import torch

from lowrank_opt.completion import CompletionResult, als
from lowrank_opt.completion.after.fold_in import (
    FactorPrior,
    balanced_factors,
    fold_in_cols,
    fold_in_rows,
    put_rows,
    transposed,
)
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.observations import Observations
from tests.completion_cases import normal, observe, seeded

PENALTY = {"penalty": 0.7, "exponent": 0.5}


def fitted(observations: Observations, rank: int = 3, **options: float) -> CompletionResult:
    settings = {**PENALTY, "bias_ratio": 2.0, "tolerance": 1e-13, "sweeps": 2000} | options
    return als(observations, rank, generator=seeded(), **settings)


def ridge(rank: int = 3, bias: float | None = 1.4) -> FactorPrior:
    return FactorPrior.ridge(rank, bias_penalty=bias, **PENALTY)


def dense_row(
    result: CompletionResult, entries: Observations, prior: FactorPrior, row: int
) -> torch.Tensor:
    """Predictions of one new row by normal equations, written out."""
    _, V = balanced_factors(result.operator)
    F = torch.cat((V, torch.ones(len(V), 1).double()), 1)[:, : len(prior.mean)]
    here = entries.rows == row
    A, y = F[entries.cols[here]], entries.values[here].double()
    w = torch.ones(len(y)).double() if entries.weights is None else entries.weights[here]
    y = y - result.bias.mean - result.bias.cols[entries.cols[here]]
    P = max(int(here.sum()), 1) ** prior.exponent * prior.precision
    x = torch.linalg.solve(A.T @ (w[:, None] * A) + P, A.T @ (w * y) + P @ prior.mean)
    return F @ x + result.bias.mean + result.bias.cols


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_new_rows_solve_their_normal_equations(weights: bool, biased: bool):
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    entries = observe(normal(6, 12, seed=5) + 3, 0.4, weights=weights)
    K = 3 + biased
    L = normal(K, K, seed=7)
    prior = FactorPrior(L @ L.T + torch.eye(K).double(), normal(K, seed=8), 0.3)
    rows = fold_in_rows(result, entries, prior)
    for i in range(6):
        expected = dense_row(result, entries, prior, i)
        torch.testing.assert_close(rows.predict(i, range(12)), expected, rtol=1e-9, atol=1e-9)


def test_known_rows_come_back():
    observations = observe(normal(20, 12) + 3, 0.7)
    result = fitted(observations)
    again = fold_in_rows(result, observations, ridge())
    torch.testing.assert_close(again.to_dense(), result.to_dense(), rtol=0, atol=1e-4)


def test_known_columns_come_back():
    observations = observe(normal(20, 12) + 3, 0.7, weights=True)
    result = fitted(observations)
    again = fold_in_cols(result, observations, ridge())
    torch.testing.assert_close(again.to_dense(), result.to_dense(), rtol=0, atol=1e-4)


def test_folding_in_is_nearly_a_refit():
    W = normal(80, 3) @ normal(3, 40, seed=1) + normal(80, 1, seed=2) + 3
    noisy = observe(W + 0.1 * normal(80, 40, seed=3), 0.5)
    old = noisy.take(noisy.rows < 60)
    new = noisy.take(noisy.rows >= 60)
    base = fitted(Observations(old.rows, old.cols, old.values, (60, 40)), sweeps=100)
    entries = Observations(new.rows - 60, new.cols, new.values, (20, 40))
    for prior in (ridge(), FactorPrior.empirical(base, Observations(*_parts(old), (60, 40)))):
        stacked = put_rows(base, fold_in_rows(base, entries, prior), torch.arange(60, 80))
        refit = fitted(noisy, sweeps=100)
        errors = [(x.to_dense()[60:] - W[60:]).norm() for x in (stacked, refit)]
        assert (80, 40) == stacked.shape
        assert errors[0] < 1.15 * errors[1] < 0.2 * W[60:].norm()


def _parts(observations: Observations) -> tuple[torch.Tensor, ...]:
    return observations.rows, observations.cols, observations.values


def test_row_depends_on_its_own_entries_alone():
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    entries = observe(normal(6, 12, seed=5) + 3, 0.4)
    alone = entries.take(entries.rows == 2)
    pair = [fold_in_rows(result, x, ridge()).predict(2, range(12)) for x in (entries, alone)]
    assert torch.equal(*pair)


def test_row_without_entries_is_at_the_mean_of_the_prior():
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    rows = fold_in_rows(result, Observations([1], [0], [5.0], (2, 12)), ridge())
    torch.testing.assert_close(rows.predict(0, range(12)), result.bias.mean + result.bias.cols)


def test_empirical_prior_is_that_of_a_gaussian():
    # Rows drawn from a Gaussian, and exact columns: the prior is known.
    U, V = normal(4000, 2) @ torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double(), normal(50, 2, seed=1)
    observations = observe(U @ V.T + 0.3 * normal(4000, 50, seed=2), 0.05)
    exact = fitted(observe(normal(4000, 50), 0.01), 2, sweeps=1)
    operator = replace(exact.operator, left=U, right=V)
    zero = replace(exact.bias, mean=0.0, rows=0 * exact.bias.rows, cols=0 * exact.bias.cols)
    prior = FactorPrior.empirical(
        replace(exact, operator=operator, bias=zero), observations, biased=False
    )
    covariance = torch.tensor([[4.0, 1.0], [1.0, 1.25]]).double()
    expected = 0.09 * torch.linalg.inv(covariance)
    torch.testing.assert_close(prior.precision, expected, rtol=0.1, atol=0.003)


@pytest.mark.parametrize("values", [[3.0, 3.0], [1e-200, 2e-200], [1e150, -1e150]])
def test_empirical_prior_of_degenerate_factors_is_finite(values: list[float]):
    observations = Observations([0, 1], [0, 1], torch.tensor(values, dtype=torch.float64), (2, 2))
    # Values whose squares vanish are not fitted; beside this penalty all tiny ones give zeros.
    fitted_to = observations.values.where(observations.values.abs() > 1e-150, 1e-150)
    result = als(observations.with_values(fitted_to), 1, penalty=1.0)
    prior = FactorPrior.empirical(result, observations)
    rows = fold_in_rows(result, observations, prior)
    assert bool(torch.isfinite(rows.to_dense()).all())


def test_rows_go_where_they_are_put():
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    rows = fold_in_rows(result, observe(normal(3, 12, seed=5) + 3, 0.4), ridge())
    expected = torch.cat((result.to_dense(), result.bias.mean + result.bias.cols.expand(3, 12)))
    expected[[4, 22, 21]] = rows.to_dense()
    positions = torch.tensor([4, 22, 21])
    torch.testing.assert_close(put_rows(result, rows, positions).to_dense(), expected)


def test_transposing_keeps_predictions():
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    torch.testing.assert_close(transposed(result).to_dense(), result.to_dense().T)


def test_float32_stays():
    result = fitted(observe(normal(20, 12) + 3, 0.7).to(dtype=torch.float32))
    rows = fold_in_rows(result, observe(normal(6, 12) + 3, 0.4), ridge())
    assert (
        torch.float32
        == rows.to_dense().dtype
        == put_rows(result, rows, torch.arange(6)).operator.dtype
    )


def test_other_columns_are_refused():
    result = fitted(observe(normal(20, 12) + 3, 0.7))
    with pytest.raises(ShapeError, match=r"new rows must have 12 columns, and the prior 3 or 4"):
        fold_in_rows(result, observe(normal(6, 11), 0.4), ridge())
    other = fitted(observe(normal(20, 12, seed=3), 0.7))
    with pytest.raises(ShapeError, match="must have the same columns"):
        put_rows(result, other, torch.arange(20))
    with pytest.raises(ShapeError, match="each row needs a position; got 20 and 3"):
        put_rows(result, result, torch.arange(3))


def test_penalties_are_positive():
    with pytest.raises(OptionError, match=r"penalties must be positive; got 0\.0"):
        FactorPrior.ridge(2, penalty=0.0, bias_penalty=None)
