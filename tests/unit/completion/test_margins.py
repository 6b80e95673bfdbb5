"""Margins for rounding are those of the theorems: seen where a unit of rounding is 2^-20.

With so coarse a unit `U`, float64 computes as good as exactly, and what a bound adds to the truth
is its margin alone. Each is written once more here, from the error analysis: an inner product of
length N is off by at most gamma(N) times that of the moduli (Higham 2002, section 3.1).
"""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import lowrank_opt as lo
from lowrank_opt.completion import ConvexProblem, certify_completion
from lowrank_opt.completion.certificates import (
    certificate,
    dual_bound,
    eigenvalue_bounds,
    random_start,
    spectral_bounds,
    support,
)
from lowrank_opt.completion.model.bias import AdditiveBias
from tests.builders import normal

D = torch.float64
UNIT, TINY = 2.0**-20, 2.0**-30
MODULES = (certificate, dual_bound, eigenvalue_bounds, random_start, spectral_bounds)
generator = np.random.default_rng(0)
A = generator.integers(-3, 4, (7, 4)).astype(float)
SPARSE = sp.csr_array(A * (A > 0))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """A unit of rounding, and a smallest number, that can be seen in float64."""
    for module in MODULES:
        monkeypatch.setattr(module, "U", UNIT)
        if hasattr(module, "TINY"):
            monkeypatch.setattr(module, "TINY", TINY)


def gamma(count):
    return count * UNIT / (1 - count * UNIT)


def same(expected, found):
    """Equal but for the rounding of float64, which is a part in 1e6 of the unit here."""
    return np.asarray(found) == pytest.approx(np.asarray(expected), rel=1e-13, abs=0)


@pytest.mark.parametrize("count", [1, 20, 1000])
def test_inner_products(count):
    assert same(gamma(count), eigenvalue_bounds.gamma(count))


@pytest.mark.parametrize("matrix", [A, SPARSE], ids=["dense", "sparse"])
def test_frobenius_norm_and_gram_matrix(matrix):
    dense = matrix if matrix is A else matrix.toarray()
    size = dense.size if matrix is A else matrix.nnz
    norm = math.sqrt((dense**2).sum() + size * TINY) * (1 + gamma(size) + 8 * UNIT)
    assert same(norm, spectral_bounds._frobenius(matrix))
    gram, error = spectral_bounds._gram(matrix)
    assert np.array_equal(dense.T @ dense, gram)
    assert same((gamma(7) * norm**2 + 2 * 7 * 4 * TINY) * (1 + 8 * UNIT), error)


def above(B, estimate, size):
    """A shift that Cholesky accepts, and what the factorization may be off (Rump, theorem 2.3)."""
    n, slack, top = len(B), 16 * len(B) * UNIT, np.linalg.eigvalsh(B)[-1]
    while (s := max(estimate, 0) + slack * size) <= top:
        slack *= 10
    c = gamma(n + 2) / (1 - gamma(n + 2))
    trace, largest = n * s + np.abs(B.diagonal()).sum(), np.abs(B.diagonal()).max()
    return s + (c * trace + 2 * UNIT * (s + largest)) * (1 + 16 * UNIT + gamma(n))


@pytest.mark.parametrize(("estimate", "size"), [(5.0, 5.0), (0.0, 3.0), (-1.0, 8.0), (4.9, 0.1)])
def test_shift_of_a_factorization(estimate, size):
    B = np.diag([5.0, -2.0, 1.0])
    assert same(above(B, estimate, size), eigenvalue_bounds._largest_above(B, estimate, size))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_leading_eigenvalues(count):
    # Differences that are squares: the deflated matrix is exact.
    d = np.array([10.0, 5.0, 1.0, 0.5])
    excess = d[: count - 1] - d[count - 1]
    B = np.diag(np.minimum(d, d[count - 1]))
    stretch = 1 + 2 * count * gamma(4 + 8)
    rounding = 2 * (gamma(count + 8) * excess.sum() + 2 * UNIT * np.linalg.norm(d))
    last = above(B, d[count - 1], d[0]) + rounding
    expected = (np.append(excess * stretch, 0) + last + 0.25) * (1 + 16 * UNIT)
    assert same(expected, eigenvalue_bounds.eigenvalue_bounds(np.diag(d), 0.25, count))


@pytest.mark.parametrize("transposed", [False, True])
def test_singular_values(transposed, monkeypatch):
    matrix = (A.T if transposed else A) * 2.0**40
    bounds = {(4, 4): lambda count: np.arange(count, 0.0, -1)}  # of the shorter side only
    name = "eigenvalue_bounds"
    monkeypatch.setattr(spectral_bounds, name, lambda gram, _, count: bounds[gram.shape](count))
    found = spectral_bounds.singular_value_bounds(matrix, 3, error=7.0).values
    assert same((np.sqrt([3.0, 2.0, 1.0]) * 2.0**42 + 7.0) * (1 + 16 * UNIT), found)


def test_singular_values_from_a_random_start(monkeypatch):
    monkeypatch.setattr(spectral_bounds, "GRAM_LIMIT", 3)
    monkeypatch.setattr(spectral_bounds, "random_start_bound", lambda matrix, generator: (2.0, 0.1))
    found = spectral_bounds.singular_value_bounds(A, 4)
    norm = spectral_bounds._frobenius(A / 4) / np.sqrt([1.0, 2.0, 3.0, 4.0])
    assert same(np.minimum(2.0, norm) * 4 * (1 + 16 * UNIT), found.values)
    assert 0.1 == found.failure_probability


def chebyshev(k, t):
    inside, outside = np.cos(k * np.arccos(t.clip(-1, 1))), np.cosh(k * np.arccosh(t.clip(1)))
    return np.where(t > 1, outside, inside)


@pytest.mark.parametrize(("s", "unit"), [(1.205, 2.0**-45), (3.0, 2.0**-29)])
def test_growth_of_random_starts(s, unit, monkeypatch):
    monkeypatch.setattr(eigenvalue_bounds, "U", unit)
    d, x = np.array([1.1, 0.7, 0.1]), normal(3, 16).numpy()
    t = 2 * d**2 / s - 1
    norms = np.stack([np.linalg.norm(chebyshev(k, t)[:, None] * x, axis=0) for k in range(101)])
    small = eigenvalue_bounds.gamma
    rounding = 8 * small(1 + 1 + 8) * (9.0 / s + 1)
    noise = rounding * (norms[:-1].sum(0) + norms[:-2].sum(0))
    part = 0.1 / 2 - 100 * noise.max()
    grown = max(1.0, norms[100].max() * (1 + small(3 + 8)) / part) ** 0.01 * (1 + 16 * UNIT)
    found = random_start._gain(sp.csr_array(np.diag(d)), x, s, 9.0)
    assert 1 < grown < 1.2
    assert found == pytest.approx(grown, rel=1e-12)


def test_starts_that_roundings_could_hide_say_nothing():
    assert math.isnan(random_start._gain(sp.csr_array(np.eye(3)), normal(3, 16).numpy(), 1.0, 9.0))


@pytest.mark.parametrize("gain", [1.0, 1.1])
def test_bound_from_the_growth(gain, monkeypatch):
    asked = []

    def grown(matrix, x, s, squares):
        asked.append(s)
        return gain if len(asked) == 3 else math.nan

    monkeypatch.setattr(random_start, "_estimate", lambda _: 2.0)
    monkeypatch.setattr(random_start, "_gain", grown)
    xi = (gain + 1 / gain) / 2
    bound, failure = random_start.random_start_bound(10 * A, None)
    assert [4.0, 6.0, 9.0] == asked
    assert same(math.sqrt((xi + 1) / 2 * 9) * (1 + 16 * UNIT), bound)
    assert failure == pytest.approx(0.08**16)


def test_bound_without_growth_is_the_frobenius_norm(monkeypatch):
    monkeypatch.setattr(random_start, "_gain", lambda *_: math.nan)
    squares = (A**2).sum() * (1 + gamma(28 + 8))
    found = random_start.random_start_bound(A, None)
    assert same([math.sqrt(squares) * (1 + 4 * UNIT), 0.0], found)


@pytest.mark.parametrize(
    ("matrix", "expected"), [(A, (7, 4)), (sp.csr_array(np.tril(np.ones((6, 3)))), (3, 6))]
)
def test_longest_lines(matrix, expected):
    assert expected == random_start._longest(matrix)


# Support functions.

PATTERN = lo.Observations.from_dense(torch.from_numpy(A))
BALL = lo.SchattenBall(2, 3.0, 2)


def of_values(monkeypatch, *values):
    """Have every matrix the same singular values; return the errors that are asked about."""
    errors = []

    def bounds(matrix, count, *, error=0.0, generator=None):
        errors.append(error)
        return spectral_bounds.SingularValueBounds(torch.tensor(values[:count]).double(), 0.125)

    monkeypatch.setattr(support, "singular_value_bounds", bounds)
    return errors


def test_support_of_a_ball(monkeypatch):
    of_values(monkeypatch, 4.0, 3.0, 1.0)
    found = support.support_function(BALL, PATTERN)
    assert same([3.0 * 5.0 * (1 + gamma(64 + 8 * 2)), 0.125], found)


def test_support_of_what_is_not_finite(monkeypatch):
    of_values(monkeypatch, math.inf, 3.0)
    assert (math.inf, 0.0) == support.support_function(BALL, PATTERN)


B = np.array([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0], [0.0, -1.0]])
C = np.array([[1.0], [-1.0], [2.0], [0.0], [3.0], [1.0], [1.0]])


def frobenius(x):
    return np.linalg.norm(x) * (1 + gamma(np.size(x) + 4))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_products_with_features(sides, kind):
    Y = A if kind == "dense" else sp.csr_array(A)
    left, right = (C if sides != "right" else None), (B if sides != "left" else None)
    core, error = support._compress(left, Y, right)
    sizes, expected, terms = np.abs(A), A, 4
    if right is not None:
        sizes, expected, terms = sizes @ np.abs(B), expected @ B, terms + 3
    if left is not None:
        sizes, expected, terms = np.abs(C).T @ sizes, C.T @ expected, terms + 6
    stored = sizes if kind == "dense" or sides != "none" else sizes[sizes != 0]
    assert np.array_equal(expected, core)
    assert same(2 * gamma(terms) * frobenius(stored), error)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_spectral_norm_of_features(kind):
    almost = np.array([[1.0, 0, 0], [0, -2, 0.5], [0, 0, 1], [0.5, 0, 0]])
    assert same(
        math.sqrt(2.5 * 2.0) * (1 + gamma(4 + 3 + 4)), support._spectral_above(kind(almost))
    )
    narrow = np.array([[3.0, 4.0]])
    assert same(5.0 * (1 + gamma(2 + 4)), support._spectral_above(kind(narrow)))


def test_support_between_features(monkeypatch):
    errors = of_values(monkeypatch, 4.0, 3.0)
    image = lo.ImageSet(BALL, torch.from_numpy(C), torch.from_numpy(B))
    inside = lo.ImageSet(lo.ImageSet(BALL, None, torch.eye(2).double()), None, torch.from_numpy(B))
    support.support_function(image, PATTERN)
    support.support_function(inside, PATTERN)
    first = support._compress(C, A, B)[1] * (1 + 1e-9)
    second = support._compress(None, A, B)[1] * (1 + 1e-9)
    grown = second * support._spectral_above(np.eye(2))
    assert same([first], errors[:1])
    assert same([(grown + support._compress(None, A @ B, np.eye(2))[1]) * (1 + 1e-9)], errors[1:])


def test_support_of_a_shifted_set(monkeypatch):
    of_values(monkeypatch, 4.0, 3.0)
    left, scale, right = (torch.from_numpy(x) for x in (C, np.array([-2.0]), B[:, 1:]))
    shifted = lo.ShiftedSet(BALL, lo.LowRankOperator(left, scale, right))
    value = float(-2.0 * C[:, 0] @ A @ B[:, 1])
    size = float(2.0 * np.abs(C[:, 0]) @ np.abs(A) @ np.abs(B[:, 1]))
    margin = 2 * gamma(7 + 4 + 1 + 4) * size
    norm = np.linalg.norm(C) * np.linalg.norm(2.0 * B[:, 1])
    assert same(
        value + (margin + 0.5 * norm) * (1 + 1e-6), support._inner_product_above(shifted, A, 0.5)
    )
    assert same(
        15.0 * (1 + gamma(80)) + value + margin * (1 + 1e-6),
        support.support_function(shifted, PATTERN)[0],
    )


# Sums of the dual bound.


def operator(*triple):
    return lo.LowRankOperator(*(torch.tensor(x, dtype=D) for x in triple))


def data(*, biased, weighted):
    """Small whole numbers: every sum is exact."""
    w = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.5]) if weighted else None
    observations = lo.Observations(
        [0, 1, 2, 2, 0], [1, 0, 1, 0, 0], [3.0, -1.0, 2.0, 0.0, 5.0], (3, 2), w
    ).to(dtype=D)
    op = operator([[1.0, -2], [0, 1], [3, 1]], [2.0, -1], [[1.0, 1], [2, 0]])
    bias = AdditiveBias(-2.0, torch.tensor([1.0, 0, -3]).double(), torch.tensor([2.0, -1]).double())
    return observations, op, bias, 0.5 if biased else None


def summed(x):
    return (x.sum() + len(x) * TINY) * (1 + gamma(1024 + 16))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_the_dual_bound(biased, weighted):
    observations, op, bias, penalty = data(biased=biased, weighted=weighted)
    terms = dual_bound.DualBound(observations, op, bias, penalty)
    i, j = observations.rows.numpy(), observations.cols.numpy()
    v, (L, s, R) = observations.values.numpy(), (x.numpy() for x in op)
    W, sizes = ((f(L) * f(s)) @ f(R).T for f in (np.asarray, np.abs))
    a, b = bias.rows.numpy()[i], bias.cols.numpy()[j]
    w = np.ones(5) if observations.weights is None else observations.weights.numpy()
    residuals = W[i, j] - 2.0 + a + b - v
    scale = np.abs(W[i, j]) + 2.0 + np.abs(a) + np.abs(b) + np.abs(v)
    errors = 2 * gamma(2 + 4) * sizes[i, j] + gamma(8) * scale
    assert np.array_equal(residuals, terms.residuals)
    assert same(errors, terms.residual_errors)
    assert np.array_equal(w * residuals, terms.gradient())

    objective = 0.5 * summed(w * (np.abs(residuals) + errors) ** 2)
    biases = np.concatenate((bias.rows, bias.cols))
    objective += 0.5 * 0.5 * summed(biases**2) if biased else 0.0
    assert same(objective * (1 + 8 * UNIT), terms.objective())

    y = np.array([1.0, -2.0, 0.0, 3.0, 1.0])
    given, size = (0, 0) if biased else (a + b, np.abs(a) + np.abs(b))
    linear = -(y @ (v + 2.0 - given))
    linear -= summed(np.abs(y) * (np.abs(v) + 2.0 + size)) * gamma(1024 + 16)
    assert same(linear, terms.linear(torch.from_numpy(y)))

    seen = w > 0
    quadratic = summed(y[seen] ** 2 / w[seen])
    if biased:
        Y = np.zeros((3, 2))
        Y[i, j] = y
        sums = np.concatenate((Y.sum(1), Y.sum(0)))
        # Two entries in the longest row, three in the longest column.
        counts = np.array([gamma(6)] * 3 + [gamma(8)] * 2)
        moduli = np.concatenate((np.abs(Y).sum(1), np.abs(Y).sum(0)))
        quadratic += summed((np.abs(sums) + counts * moduli) ** 2) / 0.5
    assert same(quadratic * (1 + 8 * UNIT), terms.quadratic(torch.from_numpy(y)))


@pytest.mark.parametrize("count", [3, 1024, 3000])
def test_sums_in_blocks(count):
    x = np.arange(count, dtype=float)
    assert same(summed(x), dual_bound.sum_above(torch.from_numpy(x)))


def test_nuclear_norm_of_factors():
    op = operator([[3.0, 0], [0, 1]], [-2.0, 1], [[1.0, 0], [0, 1], [0, 0]])
    # Orthogonal columns: the plain sum is the nuclear norm, and the smaller bound.
    plain = 7.0 * (1 + 2 * gamma(3 + 2 + 8))
    assert same(plain, dual_bound.nuclear_norm_above(op))
    twice = lo.LowRankOperator(*(torch.cat((x, x), -1) for x in op)) - op
    assert same(
        3 * 7.0 * (1 + 2 * gamma(3 + 6 + 8)) * gamma(64 * 3 * 6) + 7.0,
        dual_bound.nuclear_norm_above(twice),
    )


# The certificate itself.


class Terms(dual_bound.DualBound):
    """Parts of a dual bound that are given numbers."""

    def __init__(self, linear, quadratic):
        self.observations, self.parts = PATTERN, (linear, quadratic)

    def gradient(self):
        return torch.ones(len(PATTERN), dtype=D)

    def linear(self, y):
        return self.parts[0]

    def quadratic(self, y):
        return self.parts[1]


@pytest.mark.parametrize(("linear", "quadratic", "norm"), [(5.0, 2.0, 1.0), (0.0, 0.5, -2.0)])
def test_largest_multiple_over_a_set(linear, quadratic, norm, monkeypatch):
    monkeypatch.setattr(certificate, "support_function", lambda *_: (norm, 0.25))
    slope = linear - norm - 4 * UNIT * (abs(linear) + abs(norm))
    t = slope / quadratic
    expected = slope**2 / quadratic / 2 - gamma(16) * t * (slope + t * quadratic)
    found = certificate._lower_bound(Terms(linear, quadratic), BALL, None)
    assert same([expected, 0.25], found)


@pytest.mark.parametrize(("top", "limit"), [(2.0, 0.35), (0.0, math.inf), (0.5, 1.4)])
def test_largest_multiple_under_a_penalty(top, limit, monkeypatch):
    monkeypatch.setattr(certificate, "largest_singular_value", lambda *_: (top, 0.25))
    t = min(5.0 / 2.0, limit * (1 - 4 * UNIT))
    expected = t * 5.0 - t * t - gamma(16) * t * (5.0 + 2 * t)
    assert same([expected, 0.25], certificate._lower_bound(Terms(5.0, 2.0), 0.7, None))


@pytest.mark.parametrize(
    ("linear", "quadratic"), [(1.0, 1.0), (0.5, 1.0), (5.0, 0.0), (5.0, math.inf)]
)
def test_no_multiple_proves_nothing(linear, quadratic, monkeypatch):
    monkeypatch.setattr(certificate, "support_function", lambda *_: (1.0, 0.25))
    assert (0.0, 0.25) == certificate._lower_bound(Terms(linear, quadratic), BALL, None)


def test_objective_with_a_penalty():
    observations, op, bias, _ = data(biased=False, weighted=False)
    found = certify_completion(ConvexProblem(observations, 0.7), op, bias).objective
    plain = dual_bound.DualBound(observations, op, bias, None).objective()
    penalty = 0.7 * dual_bound.nuclear_norm_above(op) * (1 + 4 * UNIT)
    assert plain + penalty < found
    assert same(plain + penalty, found)
