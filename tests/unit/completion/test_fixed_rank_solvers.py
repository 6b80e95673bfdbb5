"""Solvers of a fixed rank: recovery, descent, weights, biases, what no entry determines."""

import itertools
import math

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import (
    gauss_newton,
    riemannian,
    scaled_gd,
    singular_value_projection,
)
from lowrank_opt.errors import ObservationError, OptionError, RankError
from tests.completion_cases import normal, observe, seeded

SOLVERS = (gauss_newton, riemannian, scaled_gd, singular_value_projection)
EVERY = pytest.mark.parametrize("solve", SOLVERS, ids=lambda f: f.__name__)


def planted(n, rank, condition, oversampling, seed):
    """Return a matrix of logarithmically spaced singular values, and random entries of it."""
    g = torch.Generator().manual_seed(seed)
    U, V = (
        torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64)).Q for _ in range(2)
    )
    sigma = n * torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    W = (U * sigma) @ V.T
    count = int(oversampling * rank * (2 * n - rank))
    cells = torch.randperm(n * n, generator=g)[:count]
    rows, cols = cells // n, cells % n
    return W, lo.Observations(rows, cols, W[rows, cols], (n, n))


def relative_error(result, W):
    return float((result.to_dense() - W).norm() / W.norm())


@EVERY
@pytest.mark.parametrize(("n", "rank", "seed"), [(200, 5, 0), (200, 5, 1), (120, 4, 2)])
def test_recovers_at_oversampling_2_5_and_condition_1e4(solve, n, rank, seed):
    W, observations = planted(n, rank, condition=1e4, oversampling=2.5, seed=seed)
    result = solve(observations, rank)
    assert relative_error(result, W) < 1e-6
    assert result.operator.rank <= rank
    assert result.status.succeeded


def test_iterations_of_scaled_gd_hardly_grow_with_the_condition_number():
    counts = []
    for condition in (1.0, 5.0, 20.0, 100.0):
        W, observations = planted(200, 4, condition, oversampling=12.0, seed=0)
        result = scaled_gd(observations, 4)
        assert relative_error(result, W) < 1e-6
        counts.append(len(result.history))
    # A few steps for each stage in which another component appears.
    assert max(counts) <= 1.3 * min(counts)


@EVERY
def test_objective_never_increases(solve):
    noisy = normal(40, 3) @ normal(3, 30, seed=1) + 0.3 * normal(40, 30, seed=2)
    objective = solve(observe(noisy, 0.6), 3, max_iterations=60).history.objective
    pairs = itertools.pairwise(objective)
    assert all(after <= before * (1 + 1e-12) for before, after in pairs)
    assert objective[-1] < 0.5 * objective[0]


@EVERY
def test_local_minimum_is_that_of_alternating_least_squares(solve):
    noisy = normal(40, 2) @ normal(2, 30, seed=1) + 0.1 * normal(40, 30, seed=2)
    observations = observe(noisy, 0.7)
    ours = solve(observations, 2, tolerance=1e-12, max_iterations=3000)
    als = lo.completion.als(
        observations,
        2,
        penalty=1e-9,
        bias=None,
        sweeps=3000,
        tolerance=1e-14,
        generator=seeded(),
    )
    torch.testing.assert_close(ours.to_dense(), als.to_dense(), rtol=1e-3, atol=1e-3)


@EVERY
def test_weighted_minimum_is_stationary_whatever_the_unit_of_weights(solve):
    noisy = normal(20, 1) @ normal(1, 15, seed=1) + 0.3 * normal(20, 15, seed=2)
    plain = observe(noisy, 0.8)
    g = seeded(3)
    weights = torch.randint(1, 4, (len(plain),), generator=g).double()
    weighted = lo.Observations(plain.rows, plain.cols, plain.values, plain.shape, weights=weights)
    settings = {"tolerance": 1e-13, "max_iterations": 2000}
    scaled = lo.Observations(plain.rows, plain.cols, plain.values, plain.shape, weights=7 * weights)
    first, second = solve(weighted, 1, **settings), solve(scaled, 1, **settings)
    torch.testing.assert_close(first.to_dense(), second.to_dense(), rtol=1e-5, atol=1e-5)
    W = first.operator.to_dense()[plain.rows, plain.cols]
    residuals = weights * (W - plain.values)
    # Stationary: the weighted residuals are orthogonal to the tangent space.
    S = torch.zeros(plain.shape, dtype=torch.float64)
    S[plain.rows, plain.cols] = residuals
    op = first.operator.thin_svd()
    assert float((S @ op.right).norm()) < 1e-4 * float(residuals.norm())
    assert float((S.T @ op.left).norm()) < 1e-4 * float(residuals.norm())


@EVERY
def test_biases_are_fitted_first(solve):
    a, b = torch.arange(24.0).double(), torch.arange(18.0).double()
    W = 3 + a[:, None] + b + normal(24, 1) @ normal(1, 18, seed=1)
    observations = observe(W, 0.7)
    result = solve(observations, 1, bias="additive", bias_penalty=0.1)
    error = result.predict(observations.rows, observations.cols) - observations.values
    assert float(error.square().mean()) < float((observations.values - W.mean()).square().mean())
    assert bool(result.bias.rows.any())


@EVERY
def test_rows_without_entries_are_zero_and_thin_ones_finite(solve):
    W = normal(12, 3) @ normal(3, 10, seed=1)
    mask = torch.ones(12, 10, dtype=torch.bool)
    mask[0], mask[:, 4] = False, False  # nothing known
    mask[1, 1:] = False  # fewer entries than the rank
    rows, cols = mask.nonzero().unbind(1)
    result = solve(lo.Observations(rows, cols, W[rows, cols], (12, 10)), 3)
    assert not bool(result.operator.to_dense()[0].any())
    assert not bool(result.operator.to_dense()[:, 4].any())
    assert bool(result.to_dense().isfinite().all())


@EVERY
@pytest.mark.parametrize("unit", [1e-150, 1.0, 1e150])
def test_unit_of_the_values_does_not_matter(solve, unit):
    W = normal(20, 2) @ normal(2, 15, seed=1)
    result = solve(observe(unit * W, 0.7), 2)
    assert float(((result.to_dense() - unit * W) / unit).norm() / W.norm()) < 1e-6


@EVERY
def test_full_rank_one_by_one_and_constant_matrices(solve):
    one = solve(lo.Observations([0], [0], [3.0], (1, 1)), 1)
    torch.testing.assert_close(one.predict(0, 0), torch.tensor(3.0))
    W = normal(5, 4)
    full = solve(observe(W, 1.0), 4)
    assert relative_error(full, W) < 1e-6
    zero = solve(lo.Observations([0, 1], [0, 1], [0.0, 0.0], (3, 3)), 2)
    assert not bool(zero.to_dense().any())


@EVERY
@pytest.mark.parametrize("bias", [None, "additive"])
def test_large_matrix_of_zeros_is_zero(solve, bias):
    rows = torch.arange(20)
    zero = solve(lo.Observations(rows, rows, torch.zeros(20), (20, 20)), 2, bias=bias)
    assert not bool(zero.to_dense().any())


@EVERY
def test_biases_that_leave_nothing_are_the_whole_fit(solve):
    rows = torch.arange(20)
    constant = solve(lo.Observations(rows, rows, 2 * torch.ones(20), (20, 20)), 2, bias="additive")
    torch.testing.assert_close(constant.to_dense(), 2 * torch.ones(20, 20))


@EVERY
def test_minimum_that_is_no_exact_fit_counts_as_converged(solve):
    result = solve(observe(normal(5, 5), 1.0), 4, tolerance=0.0)
    assert result.status.succeeded
    U, sigma, Vh = torch.linalg.svd(normal(5, 5))
    nearest = (U[:, :4] * sigma[:4]) @ Vh[:4]
    torch.testing.assert_close(result.to_dense(), nearest, rtol=0, atol=1e-6)


@EVERY
@pytest.mark.parametrize("unit", [1e-310, 1e-200, 1e200])
def test_values_whose_squares_are_no_numbers_are_refused(solve, unit):
    with pytest.raises(ObservationError, match=r"values must be of a size .* rescale them"):
        solve(observe(unit * normal(6, 5), 1.0), 2)


@EVERY
def test_float32_comes_back_as_float32(solve):
    observations = observe(normal(20, 2) @ normal(2, 15, seed=1), 0.8).to(dtype=torch.float32)
    assert torch.float32 == solve(observations, 2).operator.dtype


@EVERY
def test_validation_stops_early(solve):
    noisy = normal(60, 2) @ normal(2, 50, seed=1) + 1.0 * normal(60, 50, seed=2)
    result = solve(observe(noisy, 0.3), 8, validation=0.2, generator=seeded(1), patience=3)
    errors = result.history.validation_rmse
    assert min(errors) < errors[-1] or result.status is lo.CompletionStatus.CONVERGED
    assert not math.isnan(min(errors))


@EVERY
def test_settings_outside_of_their_domain_are_refused(solve):
    observations = observe(normal(6, 5), 0.8)
    with pytest.raises(RankError, match=r"rank must be in 1\.\.5"):
        solve(observations, 6)
    with pytest.raises(OptionError, match="start must be"):
        solve(observations, 2, start="random")
