"""Rotations, reflections and their inverses against dense formulas of numpy and scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from lowrank_opt.errors import TargetError
from lowrank_opt.linalg import (
    reflections,
    reflections_between,
    rotation,
    skew_entries,
    skew_matrices,
    skew_of,
)
from tests.builders import normal

D = torch.float64
KINDS = ("cayley", "exponential")


def skew(*shape, size=1.0, seed=0):
    K = normal(*shape, seed=seed) * size
    return (K - K.mT) / 2


def by_formula(K, kind):
    eye = np.eye(len(K))
    return (eye - K) @ np.linalg.inv(eye + K) if kind == "cayley" else scipy.linalg.expm(K)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_entries_lie_below_the_diagonal_row_by_row(size):
    x = normal(3, 2, size * (size - 1) // 2)
    K = skew_matrices(x, size)
    assert (3, 2, size, size) == K.shape
    for place in np.ndindex(3, 2):
        expected = np.zeros((size, size))
        expected[np.tril_indices(size, -1)] = x[place].numpy()
        np.testing.assert_array_equal(expected - expected.T, K[place].numpy())
    torch.testing.assert_close(x, skew_entries(K), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1e-6, 1.0, 20.0])
def test_rotations_are_those_of_the_formula(kind, b, size):
    K = skew(2, b, b, size=size)
    for k, D_k in zip(K.numpy(), rotation(K, kind).numpy(), strict=True):
        np.testing.assert_allclose(np.eye(b) + D_k, by_formula(k, kind), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [None, 0.7, 1.9])
@pytest.mark.parametrize("size", [1e-8, 1.0, 30.0, 300.0, 1e4, 1e6, 1e200, 1e307])
@pytest.mark.parametrize("b", [5, 24])
def test_rotations_are_orthogonal_to_rounding(kind, radius, size, b):
    R = torch.eye(b, dtype=D) + rotation(skew(3, b, b, size=size), kind, radius)
    assert (R.mT @ R - torch.eye(b, dtype=D)).abs().max() < 4e-15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1.0, 3e4, 1e8, 1e300])
def test_derivatives_hold_where_parameters_are_scaled_down(kind, size):
    K, moved, h = skew(3, 3, size=size), skew(3, 3, seed=1), 1e-6
    found = torch.func.jvp(lambda x: rotation(size * x, kind), (K / size,), (moved,))[1]
    ends = [rotation(K + step * size * moved, kind) for step in (h, -h)]
    scale = 1e-5 if size == 1.0 else 1e-3 * found.abs().max()
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=0, atol=float(scale))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.3, 1.0, 1.9])
def test_a_radius_is_kept_and_reached(kind, radius):
    sizes = torch.logspace(-3, 6, 40, dtype=D).unsqueeze(-1)
    norms = torch.linalg.matrix_norm(rotation(skew_matrices(sizes, 2), kind, radius), 2)
    assert norms.max() <= radius * (1 + 1e-14)
    assert norms.max() >= radius * (1 - 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("b", [2, 3, 4])
def test_skew_matrices_of_rotations_lead_back(kind, radius, b):
    D_0 = rotation(skew(5, b, b, size=0.8), kind, radius)
    K = skew_of(torch.eye(b, dtype=D) + D_0, kind, radius)
    torch.testing.assert_close(K, -K.mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(rotation(K, kind, radius), D_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_small_parameters_come_back_themselves(kind):
    K = skew(2, 3, 3, size=0.3)
    torch.testing.assert_close(
        skew_of(torch.eye(3, dtype=D) + rotation(K, kind), kind), K, rtol=0, atol=1e-13
    )


def turn(angle):
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=D)


@pytest.mark.parametrize("kind", KINDS)
def test_one_half_turn_among_others_is_refused(kind):
    with pytest.raises(TargetError, match="no eigenvalue -1"):
        skew_of(torch.stack((turn(0.3), turn(np.pi), turn(0.1))), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_half_a_turn_is_none(kind):
    R = turn(np.pi - 1e-5)
    found = torch.eye(2, dtype=D) + rotation(skew_of(R, kind), kind)
    torch.testing.assert_close(found, R, rtol=0, atol=1e-9)


def product_of_reflections(vectors):
    found = np.eye(len(vectors))
    for u in vectors.numpy().T:
        u = u / np.linalg.norm(u)
        found = found @ (np.eye(len(u)) - 2 * np.outer(u, u))
    return found


@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_reflections_are_applied_one_after_another(count):
    u = normal(6, count)
    X, Y = reflections(u)
    assert (6, count) == tuple(X.shape) == tuple(Y.shape)
    np.testing.assert_allclose(
        np.eye(6) + (X @ Y.mT).numpy(), product_of_reflections(u), atol=1e-13
    )


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_pair_with_a_zero_vector_is_left_out(zero):
    u = normal(5, 4)
    kept = u[:, 2:] if zero < 2 else u[:, :2]
    u[:, zero] = 0
    X, Y = reflections(u)
    np.testing.assert_allclose(
        np.eye(5) + (X @ Y.mT).numpy(), product_of_reflections(kept), atol=1e-13
    )


@pytest.mark.parametrize(("n", "count"), [(2, 2), (4, 4), (5, 4), (5, 6), (6, 2)])
def test_directions_of_an_orthogonal_matrix_lead_back(n, count):
    R = product_of_reflections(normal(n, min(count, 4), seed=n))
    eye = torch.eye(n, dtype=D)
    u = reflections_between(eye, torch.from_numpy(R) - eye, count)
    assert (n, count) == tuple(u.shape)
    X, Y = reflections(u)
    np.testing.assert_allclose(np.eye(n) + (X @ Y.mT).numpy(), R, atol=1e-12)


def test_nothing_moves_where_pairs_are_equal():
    X, Y = reflections(reflections_between(torch.eye(3, dtype=D), torch.zeros(3, 3, dtype=D), 2))
    assert 0 == torch.count_nonzero(X @ Y.mT)
