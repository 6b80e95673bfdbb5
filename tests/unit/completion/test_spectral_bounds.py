"""Upper bounds on singular values are above the truth, and not by much."""

import math

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from numpy.testing import assert_allclose

from lowrank_opt.completion.certificates import spectral_bounds
from lowrank_opt.completion.certificates.eigenvalue_bounds import (
    _approximate,
    _is_above,
    eigenvalue_bounds,
)
from lowrank_opt.completion.certificates.part_matrix import PartMatrix
from lowrank_opt.completion.certificates.random_start import _estimate, random_start_bound
from lowrank_opt.completion.certificates.spectral_bounds import singular_value_bounds


def sparse(m: int, n: int, *, share: float = 0.2, seed: int = 0) -> sp.csr_array:
    return sp.random_array((m, n), density=share, format="csr", rng=np.random.default_rng(seed))


def exact_singular_values(matrix: np.ndarray) -> list:
    with mpmath.workdps(60):
        return sorted(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False), reverse=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1), (1, 6)])
def test_every_bound_is_above_the_singular_value_in_60_digits(shape, seed):
    matrix = np.random.default_rng(seed).standard_normal(shape) * 10.0 ** (40 * seed - 160)
    bounds = singular_value_bounds(matrix, min(shape)).values
    truth = exact_singular_values(matrix)
    assert all(mpmath.mpf(b) >= t for b, t in zip(bounds.tolist(), truth, strict=True))


@pytest.mark.parametrize(
    "matrix",
    [
        np.ones((4, 9)),
        np.diag([3.0, 2.0, 2.0, 0.0]),
        np.eye(5) * 1e300,
        np.full((3, 2), 1e307),
        np.eye(3) * 5e-324,
        np.full((2, 3), 1e-310),
        np.outer([1.0, 1e-8, 1e-160], [1.0, 1e150]),
        np.zeros((3, 2)),
    ],
)
def test_bounds_of_extreme_matrices_are_above_and_close(matrix):
    count = min(matrix.shape)
    bounds = singular_value_bounds(matrix, count).values.tolist()
    truth = exact_singular_values(matrix)
    assert all(mpmath.mpf(b) >= t for b, t in zip(bounds, truth, strict=True))
    assert_allclose([float(t) for t in truth], bounds, rtol=1e-12, atol=2e-6 * bounds[0] + 1e-323)


@pytest.mark.parametrize(("m", "n"), [(300, 200), (200, 300), (60, 40)])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_bounds_of_sparse_matrices_are_close(m, n, count):
    matrix = sparse(m, n)
    truth = np.linalg.svd(matrix.toarray(), compute_uv=False)[:count]
    bounds = singular_value_bounds(matrix, count)
    assert 0.0 == bounds.failure_probability
    assert np.all(bounds.values.numpy() >= truth * (1 - 1e-14))
    assert_allclose(truth, bounds.values.numpy(), rtol=1e-8)


def test_bounds_of_equal_singular_values_are_close():
    matrix = sp.csr_array(sp.block_diag([np.eye(200) * 3, np.eye(100)]))
    assert_allclose(3.0, singular_value_bounds(matrix, 7).values.numpy(), rtol=1e-9)


def test_dense_blocks_and_sparse_product_give_one_gram(monkeypatch):
    matrix = sparse(300, 20, share=0.9)
    monkeypatch.setattr(spectral_bounds, "_BLOCK", 7)
    blocks = singular_value_bounds(matrix, 3).values.numpy()
    monkeypatch.setattr(spectral_bounds, "_DENSE_SPEED", 0)
    assert_allclose(blocks, singular_value_bounds(matrix, 3).values.numpy(), rtol=1e-12)


def test_count_is_cut_to_the_smaller_side():
    assert (2,) == tuple(singular_value_bounds(np.ones((2, 3)), 10).values.shape)


def test_an_error_is_added():
    bounds = singular_value_bounds(np.diag([1.0, 2.0]), 2, error=0.5)
    assert_allclose([2.5, 1.5], bounds.values.numpy(), rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bounds_of_what_is_not_finite_are_infinite(bad):
    assert math.isinf(float(singular_value_bounds(np.array([[1.0, bad]]), 1).values[0]))


def test_an_error_of_the_gram_matrix_is_added_to_eigenvalues():
    assert eigenvalue_bounds(np.eye(3), 0.25, 1)[0] >= 1.25


@pytest.mark.parametrize("d", [[1.0, 0.5], [1.0, 1.0]])
def test_a_poor_guess_of_eigenpairs_only_loosens(d, monkeypatch):
    rng = np.random.default_rng(0)
    guess = (np.array(d), np.linalg.qr(rng.standard_normal((6, 2))).Q)
    monkeypatch.setattr(
        "lowrank_opt.completion.certificates.eigenvalue_bounds._approximate", lambda A, count: guess
    )
    A = np.diag(np.arange(6.0))
    assert (eigenvalue_bounds(A, 0.0, 2) >= [5.0, 4.0]).all()


@pytest.mark.parametrize("seed", range(5))
def test_random_starts_bound_the_largest_value_within_a_percent(seed):
    matrix = sparse(400, 300, share=0.05, seed=seed)
    truth = np.linalg.svd(matrix.toarray(), compute_uv=False)[0]
    bound, failure = random_start_bound(matrix, torch.Generator().manual_seed(seed))
    assert truth <= bound <= truth * 1.01
    assert 0 < failure < 1e-16


@pytest.mark.parametrize("estimate", [0.5, 0.9, 1.5])
def test_a_poor_estimate_only_loosens_the_random_start_bound(estimate, monkeypatch):
    matrix = sparse(400, 300, share=0.05)
    truth = np.linalg.svd(matrix.toarray(), compute_uv=False)[0]
    monkeypatch.setattr(
        "lowrank_opt.completion.certificates.random_start._estimate", lambda _: truth * estimate
    )
    bound, _ = random_start_bound(matrix, torch.Generator().manual_seed(0))
    assert truth <= bound <= 1.6 * truth


def test_large_matrices_use_random_starts_and_the_frobenius_norm(monkeypatch):
    monkeypatch.setattr(spectral_bounds, "GRAM_LIMIT", 10)
    matrix = sparse(40, 30)
    truth = np.linalg.svd(matrix.toarray(), compute_uv=False)[:4]
    bounds = singular_value_bounds(matrix, 4, generator=torch.Generator().manual_seed(0))
    assert np.all(bounds.values.numpy() >= truth)
    assert 0 < bounds.failure_probability < 1e-16


@pytest.mark.parametrize(("size", "count"), [(140, 3), (140, 100), (20, 3)])
def test_approximate_eigenpairs_are_decreasing_and_repeat(size, count):
    root = np.random.default_rng(0).standard_normal((size, size))
    A = root @ root.T
    expected = np.linalg.eigvalsh(A)[::-1][:count]
    d, V = _approximate(A, count)
    assert_allclose(d, expected, rtol=1e-9)
    assert_allclose(A @ V, V * d, atol=1e-7 * d[0])
    assert all(map(np.array_equal, (d, V), _approximate(A, count)))


def refuse(*_, **__):
    raise scipy.sparse.linalg.ArpackError(-9999)


def test_values_that_arpack_refuses_are_bounded_too(monkeypatch):
    monkeypatch.setattr("scipy.sparse.linalg.eigsh", refuse)
    d, V = _approximate(np.diag(np.arange(150.0)), 2)
    assert_allclose(d, [149.0, 148.0])
    assert_allclose(np.abs(V[-2:]), [[0, 1], [1, 0]], atol=1e-12)
    monkeypatch.setattr("scipy.sparse.linalg.svds", refuse)
    assert_allclose(_estimate(sparse(40, 30)), np.linalg.norm(sparse(40, 30).toarray(), 2))


def test_a_factorization_that_is_no_number_proves_nothing():
    assert not _is_above(1.0, np.array([[math.nan, 0.0], [0.0, 0.0]]))
    assert not _is_above(1.0, np.diag([2.0, 0.0]))
    assert _is_above(2.5, np.diag([2.0, 0.0]))


@pytest.mark.parametrize("zero", [np.zeros((3, 2)), sp.csr_array((3, 2))])
def test_bounds_of_zero_are_the_error(zero):
    values = singular_value_bounds(zero, 2, error=0.5).values
    assert torch.equal(torch.tensor([0.5, 0.5]).double(), values)


class Twice:
    """Two processes with the same entries: sums double, maxima stay."""

    whole_shape, count = (6, 4), 11

    @staticmethod
    def total(x):
        return 2 * x

    @staticmethod
    def largest(x):
        return x


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_in_parts_is_the_sum_of_its_parts(cut, turned):
    dense = np.triu(np.arange(-7.0, 17.0).reshape(6, 4))
    rows = sp.csr_array(dense)
    P, whole = PartMatrix(rows, None if cut else rows, Twice()), dense
    if turned:
        P, whole = P.T, dense.T
    x = np.arange(2.0 * whole.shape[1]).reshape(-1, 2) - 3
    once = 1 if cut and not turned else 2  # lines of rows that are cut belong to one process
    assert whole.shape == P.shape
    assert cut == P.cut
    for product in (P @ x, P @ sp.csr_array(x), P.T.T @ x):
        np.testing.assert_array_equal(once * whole @ x, product)
    np.testing.assert_array_equal(once * np.abs(whole) @ x, abs(P) @ x)
    np.testing.assert_array_equal(once * -3.0 * whole @ x, (P * -3.0) @ x)
    assert (11, np.abs(dense).max(), 2 * (dense**2).sum()) == (P.count, P.peak(), P.squares())
    lines = (dense != 0).sum(1).max(), (dense != 0).sum(0).max() * (2 if cut else 1)
    assert (lines[::-1] if turned else lines) == P.longest()
    if not (cut and turned):
        np.testing.assert_array_equal(2 * whole.T @ whole, P.gram())
    if not cut:
        np.testing.assert_array_equal(2 * np.abs(whole.T) @ np.abs(whole), abs(P).gram())
        np.testing.assert_array_equal(8 * whole.T @ whole, (P * 2.0).gram())
