"""Eight factorisations side by side against NumPy, one matrix at a time."""

import numpy as np
import pytest

from lowrank_opt.kernels.loops.lanes import LANES, factor, invert, solve


@pytest.fixture(params=[1, 2, 7, 13])
def matrices(request):
    rng = np.random.default_rng(request.param)
    root = rng.standard_normal((LANES, request.param, request.param + 3))
    return root @ root.transpose(0, 2, 1)


def lanes(x):
    return np.moveaxis(x, 0, -1).copy(order="C")


def factored(matrices, smallest=0.0):
    A, logdets = lanes(matrices), np.empty(LANES)
    factor(A, smallest, logdets)
    return A, logdets


def test_log_determinants_are_numpys(matrices):
    np.testing.assert_allclose(factored(matrices)[1], np.linalg.slogdet(matrices)[1], rtol=1e-9)


def test_inverses_are_numpys(matrices):
    L, _ = factored(matrices)
    inverse, C = np.zeros_like(L), np.zeros_like(L)
    invert(L, inverse, C)
    expected = lanes(np.tril(np.linalg.inv(matrices)))
    np.testing.assert_allclose(C, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_solutions_are_numpys(matrices):
    b = np.random.default_rng(0).standard_normal(matrices.shape[:2])
    L, _ = factored(matrices)
    x = lanes(b)
    solve(L, x, None)
    expected = lanes(np.linalg.solve(matrices, b[..., None])[..., 0])
    np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)


def test_noise_is_multiplied_by_the_inverse_transposed_root(matrices):
    z = np.random.default_rng(0).standard_normal(matrices.shape[:2])
    L, _ = factored(matrices)
    x = np.zeros_like(lanes(z))
    solve(L, x, lanes(z))
    roots = np.linalg.cholesky(matrices).transpose(0, 2, 1)
    expected = lanes(np.linalg.solve(roots, z[..., None])[..., 0])
    np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)


def test_a_lane_does_not_see_its_neighbours(matrices):
    alone = np.repeat(matrices[:1], LANES, axis=0)
    np.testing.assert_array_equal(factored(alone)[0][..., 0], factored(matrices)[0][..., 0])


def test_pivots_lost_to_rounding_are_raised():
    singular = np.tile(np.array([[1.0, 1.0], [1.0, 1.0 - 1e-12]]), (LANES, 1, 1))
    L, logdets = factored(singular, smallest=1e-6)
    assert bool(np.isfinite(L).all())
    np.testing.assert_allclose(logdets, np.log(1e-6), rtol=1e-6)
