"""Frank-Wolfe reaches the optimum of the convex problem and proves it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import CompletionStatus, frank_wolfe
from lowrank_opt.completion.solvers.subspace_fit import SubspaceFit
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.sets import KyFanBall, NestedSet, RankAtMost, SchattenBall, SingularValueBox
from tests.completion_cases import LargestAllocation, ball, normal, observe
from tests.convex_oracle import convex_objective, fista, simplex

BALL = SchattenBall(1, 3.0, 7)


@pytest.mark.parametrize("ridge", [0.3, 5.0])
@pytest.mark.parametrize("weights", [False, True])
def test_objective_agrees_with_an_independent_solver(weights, ridge):
    obs = observe(normal(9, 7), 0.6, weights=weights)
    W, bias = fista(obs, lambda s, _: simplex(s, 3.0), ridge=ridge)
    expected = convex_objective(obs, W, bias, ridge)
    result = frank_wolfe(obs, BALL, bias_penalty=ridge, tolerance=1e-8)
    assert CompletionStatus.CONVERGED is result.status
    assert expected == pytest.approx(result.certificate().objective, rel=1e-6)
    assert torch.allclose(W, result.operator.to_dense(), atol=1e-2)


@pytest.mark.parametrize(
    "feasible_set",
    [
        SchattenBall(1, 20.0, 30),
        SchattenBall(1.5, 10.0, 30),
        SchattenBall(2, 6.0, 30),
        SchattenBall(math.inf, 1.0, 30),
        KyFanBall(3, 9.0, 30),
        SingularValueBox(np.linspace(1.5, 0.1, 30)),
    ],
    ids=["nuclear", "1.5", "frobenius", "spectral", "ky fan", "box"],
)
@pytest.mark.parametrize("bias", ["additive", None])
def test_the_gap_falls_to_a_millionth_on_every_set(feasible_set, bias):
    obs = observe(normal(40, 30), 0.5)
    result = frank_wolfe(obs, feasible_set, bias=bias, tolerance=1e-6, max_iterations=100)
    assert CompletionStatus.CONVERGED is result.status
    # Beside the gap of the float64 solution: singular values known to 1e-8 of the largest.
    assert result.certificate().relative_gap < 3e-6
    assert feasible_set.contains(result.operator)


def test_every_iterate_is_better_than_the_one_before():
    result = frank_wolfe(observe(normal(40, 30), 0.5), SchattenBall(1, 20.0, 30))
    assert all(a > b for a, b in pairwise(result.history.objective))


def test_the_gap_converges_linearly():
    obs = observe(normal(40, 30), 0.5)
    counts = [
        len(frank_wolfe(obs, SchattenBall(1, 20.0, 30), tolerance=tolerance).history)
        for tolerance in (1e-3, 1e-6)
    ]
    assert counts[1] <= 3 * counts[0]


def test_the_singular_vectors_of_a_full_matrix_are_found():
    M = normal(8, 6)
    U, sigma, Vh = torch.linalg.svd(M, full_matrices=False)
    expected = (U * torch.from_numpy(simplex(sigma.numpy(), 2.0))) @ Vh
    result = frank_wolfe(
        Observations.from_dense(M), SchattenBall(1, 2.0, 6), bias=None, tolerance=1e-10
    )
    assert torch.allclose(expected, result.operator.to_dense(), atol=1e-4)


def test_a_weighted_ball_is_solved():
    obs = observe(normal(12, 10), 0.7)
    weights = (normal(12, seed=3).abs() + 0.2, normal(10, seed=4).abs() + 0.2)
    feasible_set = lo.sets.WeightedSet(SchattenBall(1, 4.0, 10), *weights)
    result = frank_wolfe(obs, feasible_set, tolerance=1e-6)
    assert result.certificate().relative_gap < 3e-6
    assert feasible_set.contains(result.operator)


def test_a_gradient_method_agrees():
    obs = observe(normal(10, 8), 0.6)
    convex = frank_wolfe(obs, SchattenBall(1, 4.0, 8), tolerance=1e-7).certificate()
    smooth = lo.complete(obs, ball((10, 8), 8, 4.0), tolerance=1e-11).certificate()
    assert convex.objective == pytest.approx(smooth.objective, rel=1e-5)


def test_a_rank_bound_is_kept_and_the_gap_tells_its_price():
    obs = observe(normal(10, 8), 0.8)
    feasible_set = SchattenBall(1, 8.0, 2)
    result = frank_wolfe(obs, feasible_set, tolerance=1e-4)
    assert feasible_set.contains(result.operator)
    assert result.status in (CompletionStatus.RANK_BINDS, CompletionStatus.GAP_OPEN)
    assert result.certificate().relative_gap > 1e-4


def test_results_have_the_dtype_of_the_observations():
    obs = observe(normal(9, 7), 0.6).to(dtype=torch.float32)
    result = frank_wolfe(obs, BALL)
    assert torch.float32 == result.operator.dtype == result.bias.rows.dtype
    assert result.certificate().relative_gap < 2e-4


def test_validation_stops_the_iteration():
    obs = observe(normal(30, 20), 0.5)
    result = frank_wolfe(
        obs, SchattenBall(1, 60.0, 20), validation=0.2, patience=2, tolerance=1e-9,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert CompletionStatus.STOPPED_BY_VALIDATION is result.status


@pytest.mark.parametrize("size", [1e-150, 1e-20, 1e20, 1e100])
def test_the_unit_of_the_values_does_not_matter(size):
    obs = observe(normal(9, 7) * size, 0.6)
    result = frank_wolfe(obs, SchattenBall(1, 3.0 * size, 7), tolerance=1e-6)
    assert CompletionStatus.CONVERGED is result.status


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_is_the_mean(value):
    obs = observe(torch.full((30, 20), value).double(), 0.5)
    result = frank_wolfe(obs, SchattenBall(1, 5.0, 20))
    assert CompletionStatus.CONVERGED is result.status
    assert value == pytest.approx(float(result.predict(0, 0)), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_entry(value):
    obs = Observations([0], [0], torch.tensor([value], dtype=torch.float64), (1, 1))
    result = frank_wolfe(obs, SchattenBall(1, 2.0, 1), bias=None)
    assert min(value, 2.0) == pytest.approx(float(result.predict(0, 0)), abs=1e-3)


def test_rows_and_columns_without_entries_stay_zero():
    obs = observe(normal(6, 5), 0.9)
    wide = Observations(obs.rows, obs.cols, obs.values, (9, 8))
    W = frank_wolfe(wide, SchattenBall(1, 2.0, 8), tolerance=1e-6).operator.to_dense()
    assert float(W[6:].abs().max()) < 1e-12
    assert float(W[:, 5:].abs().max()) < 1e-12


def test_nothing_of_the_size_of_the_matrix_is_allocated():
    generator = torch.Generator().manual_seed(0)
    i, j = (torch.randint(1000, (4000,), generator=generator) for _ in range(2))
    obs = Observations(i, j, torch.randn(4000).double(), (1000, 1000), duplicates="last")
    with LargestAllocation() as largest:
        frank_wolfe(obs, SchattenBall(1, 5.0, 1000), max_iterations=3)
    assert largest.numel < 1000 * 100


def test_subspaces_are_widened_without_moving_the_matrix():
    fit = SubspaceFit(observe(normal(9, 7), 0.6), 0.0, BALL, bias_penalty=None)
    point = fit.start()
    wide = point.widened(normal(9, 12), normal(7, 3, seed=1))
    assert (9, 9) == tuple(wide.U.shape)
    assert torch.allclose(torch.eye(9).double(), wide.U.mT @ wide.U)
    again = wide.replace(normal(9, wide.V.shape[1]), wide.rows, wide.cols).compressed()
    moved = again.widened(normal(9, 2), normal(7, 2))
    assert torch.allclose(
        again.U @ again.core @ again.V.mT, moved.U @ moved.core @ moved.V.mT, atol=1e-12
    )


def test_an_unbounded_set_is_refused():
    with pytest.raises(OptionError, match="a bounded set of singular values"):
        frank_wolfe(observe(normal(6, 5), 0.8), RankAtMost(2))


def test_sets_in_given_subspaces_are_refused():
    nested = NestedSet(SchattenBall(1, 1.0, 2), torch.eye(6, 3), torch.eye(5, 3))
    with pytest.raises(OptionError, match="a bounded set of singular values, or a weighted one"):
        frank_wolfe(observe(normal(6, 5), 0.8), nested)
