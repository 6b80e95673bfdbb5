"""Max-norm completion: inside its bound, and optimal where the optimum is known."""

from itertools import pairwise

import pytest
import torch

from lowrank_opt.completion import max_norm
from lowrank_opt.errors import CertificateError, RadiusError
from lowrank_opt.observations import Observations
from tests.completion_cases import LargestAllocation, normal, observe, seeded

SIGNS = torch.outer(normal(7).sign(), normal(5, seed=1).sign())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [1e-30, 0.1, 1.0, 10.0])
def test_rows_of_the_factors_are_within_the_root_of_the_radius(radius, dtype):
    obs = observe(normal(12, 9), 0.6).to(dtype=dtype)
    op = max_norm(obs, 4, radius=radius, max_iterations=10, generator=seeded()).operator
    lengths = torch.cat((op.left, op.right)).double().square().sum(dim=1)
    assert float(lengths.max()) <= radius * (1 + 2 * torch.finfo(dtype).eps)
    assert torch.ones(4, dtype=dtype).equal(op.scale)
    assert float(op.to_dense().abs().max()) <= radius * (1 + 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("size", "radius", "expected"), [(2.0, 1.5, 1.5), (2.0, 3.0, 2.0)])
def test_a_matrix_of_signs_is_cut_at_the_radius(size, radius, expected, rank):
    obs = observe(size * SIGNS, 0.9)
    result = max_norm(obs, rank, radius=radius, bias=None, tolerance=1e-12, generator=seeded(1))
    fitted = result.predict(obs.rows, obs.cols)
    assert torch.allclose(expected * SIGNS[obs.rows, obs.cols], fitted, atol=1e-5)


def test_the_identity_has_max_norm_one():
    obs = Observations.from_dense(torch.eye(5).double())
    result = max_norm(obs, 5, radius=1.0, bias=None, tolerance=1e-12, generator=seeded())
    assert torch.allclose(torch.eye(5).double(), result.operator.to_dense(), atol=1e-3)


def test_the_objective_is_at_least_that_of_bounded_entries():
    obs = observe(3 * normal(10, 8), 0.7)
    result = max_norm(obs, 8, radius=1.0, bias=None, generator=seeded())
    bound = 0.5 * float((obs.values.abs() - 1).clamp_min(0).square().sum())
    assert min(result.history.objective) >= bound


@pytest.mark.parametrize("weights", [False, True])
def test_rows_satisfy_the_conditions_of_optimality(weights):
    obs = observe(normal(10, 8), 0.7, weights=weights)
    result = max_norm(
        obs, 4, radius=0.7, bias=None, tolerance=1e-14, max_iterations=3000, generator=seeded()
    )
    L, R = result.operator.left, result.operator.right
    w = torch.ones_like(obs.values) if obs.weights is None else obs.weights
    e = w * (result.predict(obs.rows, obs.cols) - obs.values)
    G = torch.zeros(10, 8).double().index_put_((obs.rows, obs.cols), e)
    for x, slope in ((L, G @ R), (R, G.mT @ L)):
        on_boundary = x.square().sum(1) > 0.7 * (1 - 1e-9)
        nu = -(x * slope).sum(1) / x.square().sum(1) * on_boundary
        assert float(nu.min()) >= -1e-6
        assert float((slope + nu.unsqueeze(1) * x).abs().max()) < 1e-4


def test_a_planted_matrix_is_recovered_under_a_wide_bound():
    M = normal(30, 2) @ normal(2, 25, seed=1)
    obs = observe(M, 0.5)
    result = max_norm(obs, 2, radius=50.0, bias=None, tolerance=1e-14, generator=seeded())
    assert float((result.operator.to_dense() - M).norm() / M.norm()) < 1e-3


@pytest.mark.parametrize("bias", ["additive", None])
def test_the_objective_never_increases(bias):
    obs = observe(normal(30, 20), 0.4, weights=True)
    history = max_norm(obs, 5, radius=0.8, bias=bias, generator=seeded()).history
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(history.objective))


def test_additive_data_is_left_to_the_biases():
    M = 3.0 + normal(12, 1) + normal(1, 10, seed=1)
    result = max_norm(
        observe(M, 0.8), 1, radius=1e-9, bias_penalty=0.0, tolerance=1e-14, generator=seeded()
    )
    assert float((result.predict(range(10), range(10)) - M.diagonal()).abs().max()) < 1e-3


@pytest.mark.parametrize("size", [1e-50, 1e50])
def test_the_unit_of_the_values_does_not_matter(size):
    M = normal(9, 7)
    plain = max_norm(observe(M, 0.6), 3, radius=0.8, generator=seeded()).operator.to_dense()
    scaled = max_norm(observe(M * size, 0.6), 3, radius=0.8 * size, generator=seeded())
    assert torch.allclose(plain, scaled.operator.to_dense() / size, atol=1e-6)


def test_rows_without_entries_are_zero():
    obs = Observations([0, 1], [0, 1], torch.tensor([1.0, 2.0]).double(), (4, 3))
    W = max_norm(obs, 2, radius=1.0, bias=None, generator=seeded()).operator.to_dense()
    assert 0.0 == float(W[2:].abs().max())
    assert 0.0 == float(W[:, 2].abs().max())


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (0.5, 0.5), (-3.0, -2.0)])
def test_one_entry(value, expected):
    obs = Observations([0], [0], torch.tensor([value]).double(), (1, 1))
    result = max_norm(obs, 1, radius=2.0, bias=None, generator=seeded())
    assert expected == pytest.approx(float(result.predict(0, 0)), abs=1e-9)


def test_nothing_of_the_size_of_the_matrix_is_allocated():
    i, j = (torch.randint(1000, (4000,), generator=seeded(s)) for s in (0, 1))
    obs = Observations(i, j, torch.randn(4000).double(), (1000, 1000), duplicates="last")
    with LargestAllocation() as largest:
        max_norm(obs, 5, radius=0.5, max_iterations=3)
    assert largest.numel < 1000 * 20


def test_there_is_no_certificate():
    result = max_norm(observe(normal(6, 5), 0.8), 2, radius=1.0, max_iterations=2)
    with pytest.raises(CertificateError, match="a certificate needs a convex problem"):
        result.certificate()


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf"), float("nan")])
def test_the_radius_must_be_positive(radius):
    with pytest.raises(RadiusError, match="radius must be positive and finite"):
        max_norm(observe(normal(6, 5), 0.8), 2, radius=radius)
