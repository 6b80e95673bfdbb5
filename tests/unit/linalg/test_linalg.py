"""Projections, norms and small SVDs against independent solvers."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import torch

from lowrank_opt.linalg import (
    leading_svd,
    lp_norm,
    negligible,
    normalize_columns,
    orthonormal_columns,
    product_svd,
    project_l1_ball,
    project_lp_ball,
    project_top_k_sum,
    scale_to_unit_peak,
    top_k_sum,
)
from tests.builders import normal

D = torch.float64


def nearest_in_polytope(v, A, b):
    """Least-distance programming by nonnegative least squares (Lawson and Hanson, ch. 23)."""
    E = np.vstack((-A.T, A @ v - b))
    f = np.zeros(len(v) + 1)
    f[-1] = 1.0
    u, _ = scipy.optimize.nnls(E, f)
    residual = E @ u - f
    return v - residual[:-1] / residual[-1]


def top_k_polytope(r, k, radius):
    subsets = itertools.combinations(range(r), min(k, r))
    rows = [[1.0 if i in subset else 0.0 for i in range(r)] for subset in subsets]
    A = np.vstack((rows, -np.eye(r)))
    return A, np.concatenate((np.full(len(rows), radius), np.zeros(r)))


VECTORS = {
    "one": [3.0],
    "spread": [5.0, 2.0, 1.0, 0.5],
    "tied": [2.0, 2.0, 2.0, 2.0],
    "two ties": [3.0, 3.0, 1.0, 1.0, 0.0],
    "zeros": [1.5, 0.0, 0.0],
    "close": [1.0, 1.0 - 1e-9, 0.7],
    "unsorted": [0.3, 4.0, 1.0, 2.0],
    "tail matters": [1.0, 0.9, 0.9, 0.9, 0.9],
}


@pytest.mark.parametrize("values", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("radius", [0.01, 1.0, 1.4, 2.5])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_projection_is_that_of_quadratic_program(values, radius, k):
    v = torch.tensor(values, dtype=D)
    expected = v.numpy()
    if top_k_sum(v, k) > radius:
        expected = nearest_in_polytope(expected, *top_k_polytope(len(values), k, radius))
    x = project_top_k_sum(v, radius, k)
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-9)


@pytest.mark.parametrize("seed", range(30))
def test_top_k_projection_random(seed):
    g = np.random.default_rng(seed)
    r, k = int(g.integers(2, 7)), int(g.integers(1, 5))
    v = np.abs(g.standard_normal(r)) * g.choice([0.1, 1.0, 3.0])
    v[g.random(r) < 0.3] = v[0]
    radius = float(np.sort(v)[::-1][:k].sum() * g.uniform(0.05, 0.99))
    expected = nearest_in_polytope(v, *top_k_polytope(r, k, radius))
    np.testing.assert_allclose(
        project_top_k_sum(torch.tensor(v), radius, k), expected, rtol=0, atol=2e-9
    )


@pytest.mark.parametrize("values", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("radius", [0.01, 1.0, 2.5])
def test_l1_projection_is_that_of_quadratic_program(values, radius):
    v = np.array(values)
    inside = v.sum() <= radius
    polytope = top_k_polytope(len(v), len(v), radius)
    expected = v if inside else nearest_in_polytope(v, *polytope)
    np.testing.assert_allclose(
        project_l1_ball(torch.tensor(v), radius), expected, rtol=0, atol=2e-9
    )


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1.0, torch.float32),
        (1e8, torch.float32),
        (3e38, torch.float32),
        (1.0, D),
        (1e20, D),
        (1.7e308, D),
    ],
)
def test_l1_projection_of_far_tie_is_shared(size, dtype):
    x = project_l1_ball(torch.tensor([size, size, size / 2], dtype=dtype), 0.5)
    torch.testing.assert_close(x, torch.tensor([0.25, 0.25, 0.0], dtype=dtype))


@pytest.mark.parametrize("p", [1.01, 1.5, 2.0, 2.5, 7.0, 50.0])
@pytest.mark.parametrize("size", [1.0, 1e20])
def test_lp_projection_is_stationary(p, size):
    # (v_i - x_i) / x_i^(p-1) is the same for all i, and x lies on the sphere: the problem is
    # convex, so that this is enough.
    v = size * torch.tensor([2.0, 1.9, 1.2, 0.7], dtype=D)
    x = project_lp_ball(v, 1.0, p).numpy()
    multiplier = (v.numpy()[0] - x[0]) / x[0] ** (p - 1)
    assert np.sum(x**p) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(x + multiplier * x ** (p - 1), v, rtol=1e-11)


@pytest.mark.parametrize("p", [1.3, 3.0])
def test_lp_projection_is_that_of_sequential_quadratic_programming(p):
    v = np.array([2.0, 0.1, 1.0])
    solution = scipy.optimize.minimize(
        lambda x: np.sum((x - v) ** 2),
        v / 4,
        bounds=[(0, None)] * 3,
        constraints={"type": "ineq", "fun": lambda x: 1 - np.sum(x**p)},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(
        project_lp_ball(torch.tensor(v), 1.0, p), solution.x, rtol=0, atol=1e-6
    )


def test_projection_onto_spectral_ball_clips():
    x = project_lp_ball(torch.tensor([3.0, 0.5]), 1.0, math.inf)
    torch.testing.assert_close(x, torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_projection_keeps_members_bitwise(p):
    v = torch.tensor([0.1, 0.2, 0.0])
    assert torch.equal(v, project_lp_ball(v, 1.0, p))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3.7, math.inf])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_lp_norm_scales(p, size):
    x = np.array([3.0, -4.0, 0.5])
    expected = float(np.linalg.norm(x, p)) * size
    assert float(lp_norm(size * torch.tensor(x), p)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_lp_norm_gradient_at_zero_is_finite(p):
    x = torch.zeros(3, dtype=D, requires_grad=True)
    lp_norm(x, p).backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm_of_nothing_is_zero(p):
    assert 0.0 == float(lp_norm(torch.zeros(0), p))


def test_top_k_sum_counts_magnitudes():
    assert 7.0 == float(top_k_sum(torch.tensor([1.0, -4.0, 3.0]), 2))


@pytest.mark.parametrize("size", [1e-290, 1e-160, 1e-30, 1.0, 1e4, 1e300])
def test_normalized_columns_have_norm_one(size):
    x = normalize_columns(size * normal(6, 4)).numpy()
    np.testing.assert_allclose(np.linalg.norm(x, axis=0), 1.0, rtol=4e-16)


def test_plain_normalisation_underflows():
    # The trap that normalize_columns avoids: squares of 1e-160 are denormal, those of 1e-170 zero.
    b = 1e-170 * normal(3, 1)
    assert 0.0 == float(b.square().sum().sqrt())
    assert pytest.approx(1.0) == float(normalize_columns(b).square().sum())


def test_normalized_columns_have_the_gradient_of_the_projection():
    x = normal(5, 1).requires_grad_()
    direction = normal(5, 1, seed=1)
    (normalize_columns(x) * direction).sum().backward()
    u = (x / x.norm()).detach()
    expected = (direction - u * (u * direction).sum()) / x.detach().norm()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
def test_negligible_columns_are_zero_with_zero_gradient(dtype):
    x = torch.full((3, 1), negligible(dtype) / 2, dtype=dtype, requires_grad=True)
    unit = normalize_columns(x)
    unit.sum().backward()
    assert 0.0 == float(unit.detach().abs().sum())
    assert 0.0 == float(x.grad.abs().sum())


@pytest.mark.parametrize("size", [1e-290, 1e-30, 0.7, 1.0, 1e4, 1e307])
def test_unit_peak_is_an_exact_power_of_two(size):
    x = size * normal(4, 3)
    (y,) = scale_to_unit_peak(x)
    assert 0.5 <= float(y.abs().max()) < 1.0
    assert torch.equal(torch.frexp(x).mantissa, torch.frexp(y).mantissa)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 1), (1, 6, 1), (5, 4, 3), (3, 4, 6)], ids=str)
def test_product_svd_is_that_of_the_product(shape):
    m, n, r = shape
    L, s, R = normal(m, r), normal(r, seed=1), normal(n, r, seed=2)
    W = (L * s @ R.mT).numpy()
    U, sigma, V = product_svd(L, s, R)
    k = min(m, n, r)
    np.testing.assert_allclose(sigma, np.linalg.svd(W, compute_uv=False)[:k], rtol=0, atol=1e-14)
    np.testing.assert_allclose((U[:, :k] * sigma) @ V[:, :k].mT, W, rtol=0, atol=1e-14)
    np.testing.assert_allclose(U.mT @ U, np.eye(U.shape[1]), rtol=0, atol=1e-14)


def test_product_svd_survives_opposite_magnitudes():
    big = torch.diag(torch.tensor([1e200, 1e-200], dtype=D))
    small = torch.diag(torch.tensor([1e-200, 1e200], dtype=D))
    torch.testing.assert_close(
        product_svd(big, torch.ones(2, dtype=D), small)[1], torch.ones(2).double()
    )


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_product_svd_agrees_with_high_precision(size):
    L, R = normal(4, 2) * size, normal(3, 2, seed=1) / size * 1e3
    with mpmath.workdps(50):
        W = mpmath.matrix(L.tolist()) * mpmath.matrix(R.tolist()).T
        expected = [float(x) for x in mpmath.svd_r(W, compute_uv=False)][:2]
    np.testing.assert_allclose(product_svd(L, torch.ones(2, dtype=D), R)[1], expected, rtol=1e-13)


def test_leading_svd_of_sparse_is_that_of_dense():
    A = scipy.sparse.random_array((40, 25), density=0.2, rng=np.random.default_rng(0)).tocsr()
    U, sigma, V = leading_svd(A, 4)
    np.testing.assert_allclose(sigma, np.linalg.svd(A.toarray(), compute_uv=False)[:4], rtol=1e-10)
    np.testing.assert_allclose(
        U.mT @ torch.from_numpy(A @ V.numpy()), np.diag(sigma), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("k", [1, 3, 9])
def test_leading_svd_of_short_sparse(k):
    A = scipy.sparse.csr_array(normal(9, 3).numpy())
    expected = np.linalg.svd(A.toarray(), compute_uv=False)[:k]
    np.testing.assert_allclose(leading_svd(A, k)[1], expected, rtol=1e-13)


def test_leading_svd_of_empty_sparse_is_zero():
    U, sigma, V = leading_svd(scipy.sparse.csr_array((5, 4)), 2)
    assert [(5, 2), (2,), (4, 2)] == [tuple(x.shape) for x in (U, sigma, V)]
    assert 0.0 == float(sigma.sum())


def test_orthonormal_columns_keep_the_span():
    x = normal(6, 2)
    Q = orthonormal_columns(torch.cat((x, x), dim=1)[:, :3], 5)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(5, dtype=D), rtol=0, atol=1e-14)
    torch.testing.assert_close(Q @ (Q.mT @ x), x)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_norms_of_what_is_not_finite_are_not(p, value):
    norm = lp_norm(torch.tensor([1.0, value, 2.0], dtype=torch.float64), p)
    torch.testing.assert_close(norm, torch.tensor(value).double(), equal_nan=True)


@pytest.mark.parametrize(
    ("entry", "expected"), [(1e200, math.inf), (math.nan, math.nan), (math.inf, math.inf)]
)
def test_singular_values_of_products_that_overflow(entry, expected):
    left = torch.full((3, 2), entry, dtype=torch.float64)
    right = torch.full((4, 2), 1e200, dtype=torch.float64)
    sigma = product_svd(left, torch.ones(2, dtype=torch.float64), right)[1]
    torch.testing.assert_close(sigma, torch.full_like(sigma, expected), equal_nan=True)


@pytest.mark.parametrize("k", [1, 5])
def test_leading_values_without_arpack_are_those_of_a_dense_svd(monkeypatch, k):
    def gives_up(*_args, **_options):
        raise scipy.sparse.linalg.ArpackNoConvergence("no convergence", [], [])

    # Thirty leading values tied to the last bits, as a gradient at an optimum over a ball has them.
    left, right = (torch.linalg.qr(normal(size, 50, seed=size))[0] for size in (80, 70))
    sigma = torch.cat((torch.ones(30, dtype=D), torch.linspace(0.7, 0.01, 20, dtype=D)))
    dense = left * sigma @ right.T
    monkeypatch.setattr(scipy.sparse.linalg, "svds", gives_up)
    U, found, V = leading_svd(scipy.sparse.csr_array(dense.numpy()), k)
    torch.testing.assert_close(found, sigma[:k], rtol=1e-12, atol=0)
    torch.testing.assert_close(dense @ V, U * found, rtol=0, atol=1e-12)
    torch.testing.assert_close(U.T @ U, torch.eye(k, dtype=D), rtol=0, atol=1e-12)
