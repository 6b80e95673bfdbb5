"""Soft-impute solves the convex problem with a nuclear-norm penalty."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import CompletionStatus, frank_wolfe, soft_impute
from lowrank_opt.errors import OptionError, RankError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.sets import SchattenBall
from tests.completion_cases import LargestAllocation, normal, observe, seeded
from tests.convex_oracle import convex_objective, fista


@pytest.mark.parametrize("penalty", [0.1, 1.0, 100.0])
def test_a_full_matrix_is_soft_thresholded(penalty):
    M = normal(8, 6)
    U, sigma, Vh = torch.linalg.svd(M, full_matrices=False)
    expected = (U * (sigma - penalty).clamp_min(0.0)) @ Vh
    result = soft_impute(Observations.from_dense(M), 6, penalty=penalty, bias=None, tolerance=1e-14)
    assert torch.allclose(expected, result.operator.to_dense(), atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("weights", [False, True])
def test_objective_agrees_with_an_independent_solver(weights, ridge):
    obs = observe(normal(9, 7), 0.6, weights=weights)
    W, bias = fista(obs, lambda s, step: np.maximum(s - 0.4 * step, 0.0), ridge=ridge)
    expected = convex_objective(obs, W, bias, ridge) + 0.4 * float(torch.linalg.svdvals(W).sum())
    result = soft_impute(
        obs,
        7,
        penalty=0.4,
        bias="additive" if ridge else None,
        bias_penalty=ridge,
        tolerance=1e-11,
        max_iterations=2000,
    )
    assert expected == pytest.approx(min(result.history.objective), rel=1e-8)
    certificate = result.certificate()
    assert certificate.lower_bound <= expected * (1 + 1e-10)
    assert certificate.relative_gap < 1e-4


def test_the_objective_in_the_history_is_that_of_the_certificate():
    obs = observe(normal(12, 9), 0.6, weights=True)
    result = soft_impute(obs, 4, penalty=0.5, bias_penalty=0.7)
    assert result.certificate().objective == pytest.approx(min(result.history.objective), rel=1e-12)


@pytest.mark.parametrize("bias", ["additive", None])
def test_the_objective_never_increases(bias):
    result = soft_impute(observe(normal(30, 20), 0.4), 5, penalty=0.3, bias=bias)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(result.history.objective))


def test_the_ball_of_its_norm_has_the_same_solution():
    obs = observe(normal(30, 20), 0.5)
    penalized = soft_impute(obs, 20, penalty=2.0, tolerance=1e-11, max_iterations=3000)
    radius = float(penalized.operator.schatten_norm(1))
    bounded = frank_wolfe(obs, SchattenBall(1, radius, 20), tolerance=1e-8)
    difference = penalized.operator.to_dense() - bounded.operator.to_dense()
    assert float(difference.norm()) < 1e-3 * float(penalized.operator.schatten_norm(2))


def test_the_rank_is_that_of_the_solution():
    M = normal(20, 3) @ normal(3, 15, seed=1)
    result = soft_impute(Observations.from_dense(M), 10, penalty=0.5, bias=None)
    assert 3 == result.operator.rank


def test_a_small_rank_is_kept_and_the_gap_tells_its_price():
    result = soft_impute(observe(normal(20, 15), 0.8), 1, penalty=0.5)
    assert 1 == result.operator.rank
    assert result.certificate().relative_gap > 1e-2


def test_a_warm_start_needs_fewer_iterations():
    obs = observe(normal(40, 30), 0.5)
    first = soft_impute(obs, 10, penalty=4.0, tolerance=1e-4, generator=seeded())
    cold = soft_impute(obs, 10, penalty=3.9, tolerance=1e-4, generator=seeded())
    warm = soft_impute(obs, 10, penalty=3.9, tolerance=1e-4, start=first)
    assert warm.history.objective[0] < 1.01 * cold.history.objective[-1]
    assert len(warm.history) < len(cold.history)
    assert cold.history.objective[-1] == pytest.approx(warm.history.objective[-1], rel=1e-3)


def test_a_start_of_lower_rank_grows():
    obs = observe(normal(20, 15), 0.8)
    small = soft_impute(obs, 1, penalty=0.5)
    grown = soft_impute(obs, 8, penalty=0.5, start=small, tolerance=1e-10)
    alone = soft_impute(obs, 8, penalty=0.5, tolerance=1e-10)
    assert alone.history.objective[-1] == pytest.approx(grown.history.objective[-1], rel=1e-4)


@pytest.mark.parametrize("size", [1e-100, 1e-20, 1e20, 1e100])
def test_the_unit_of_the_values_does_not_matter(size):
    M = normal(9, 7)
    plain = soft_impute(observe(M, 0.6), 7, penalty=0.4, bias=None, generator=seeded())
    scaled = soft_impute(
        observe(M * size, 0.6), 7, penalty=0.4 * size, bias=None, generator=seeded()
    )
    assert torch.allclose(plain.operator.to_dense(), scaled.operator.to_dense() / size, atol=1e-3)


def test_weights_of_zero_are_as_no_entry():
    obs = observe(normal(9, 7), 0.6)
    extra = Observations(
        [*obs.rows.tolist(), 8],
        [*obs.cols.tolist(), 7],
        torch.cat((obs.values, torch.tensor([50.0]).double())),
        (9, 8),
        [1.0] * len(obs) + [0.0],
    )
    plain = soft_impute(obs, 5, penalty=0.4, tolerance=1e-10)
    weighted = soft_impute(extra, 5, penalty=0.4, tolerance=1e-10)
    assert plain.history.objective[-1] == pytest.approx(weighted.history.objective[-1], rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_one_entry(value):
    obs = Observations([0], [0], torch.tensor([value], dtype=torch.float64), (1, 1))
    result = soft_impute(obs, 1, penalty=1.0, bias=None)
    expected = np.sign(value) * max(abs(value) - 1, 0.0)
    assert expected == pytest.approx(float(result.predict(0, 0)), abs=1e-6)


def test_validation_stops_the_iteration():
    result = soft_impute(
        observe(normal(30, 20), 0.5),
        10,
        penalty=0.01,
        validation=0.2,
        patience=3,
        generator=seeded(),
    )
    assert CompletionStatus.STOPPED_BY_VALIDATION is result.status


def test_results_have_the_dtype_of_the_observations():
    result = soft_impute(observe(normal(9, 7), 0.6).to(dtype=torch.float32), 3, penalty=0.4)
    assert torch.float32 == result.operator.dtype == result.bias.rows.dtype


def test_nothing_of_the_size_of_the_matrix_is_allocated():
    generator = seeded()
    i, j = (torch.randint(1000, (4000,), generator=generator) for _ in range(2))
    obs = Observations(i, j, torch.randn(4000).double(), (1000, 1000), duplicates="last")
    with LargestAllocation() as largest:
        soft_impute(obs, 5, penalty=0.5, max_iterations=3)
    assert largest.numel < 1000 * 20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 8, "penalty": 1.0}, RankError, "rank must be in 1..7"),
        ({"rank": 2, "penalty": 0.0}, OptionError, "needs a positive penalty"),
    ],
)
def test_settings_outside_their_domain_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        soft_impute(observe(normal(9, 7), 0.6), **options)


def test_a_start_of_another_shape_is_refused():
    start = soft_impute(observe(normal(5, 4), 0.9), 2, penalty=1.0)
    with pytest.raises(ShapeError, match="the start must be of shape"):
        soft_impute(observe(normal(9, 7), 0.6), 2, penalty=1.0, start=start)


def test_complete_finds_it_by_name():
    obs = observe(normal(9, 7), 0.6)
    chart = lo.Factored((9, 7), 7, dtype=torch.float64)
    result = lo.complete(obs, chart, solver="soft_impute", penalty=1.0)
    assert result.certificate().relative_gap < 0.1
