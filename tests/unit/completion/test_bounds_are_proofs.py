"""Every rounding error is counted, on the right side: bounds against fractions, and planted slips.

A check takes a module, so that the same check meets the module with one character wrong: an error
subtracted instead of added, a margin divided instead of multiplied. It has to notice.
"""

from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion.certificates import certificate as certificate_module
from lowrank_opt.completion.certificates import dual_bound as dual_bound_module
from lowrank_opt.completion.model.bias import AdditiveBias
from tests.builders import seeded
from tests.slips import mutated
from tests.unit.parameterizations.test_certificate import exact_singular_values

D = torch.float64
EPS = 2.0**-52


def gamma(count):
    """Higham's bound on the relative error of an inner product."""
    return count * EPS / 2 / (1 - count * EPS / 2)


def exact(x):
    return [Fraction(v) for v in x.double().flatten().tolist()]


def problem(seed, *, size=0, weighted=False, penalty=None):
    """Observations of every entry, an operator whose terms of 2^size cancel, and biases."""
    g, m, n = seeded(seed), 6, 5
    left, right = (torch.randn(k, 3, dtype=D, generator=g) for k in (m, n))
    left[:, 1], right[:, 1] = left[:, 0], -right[:, 0]
    scale = torch.tensor([2.0**size, 2.0**size, 1.0], dtype=D)
    index = torch.arange(m * n)
    weights = torch.rand(m * n, dtype=D, generator=g) + 0.1 if weighted else None
    values = torch.randn(m * n, dtype=D, generator=g)
    observations = lo.Observations(index // n, index % n, values, (m, n), weights=weights)
    bias = AdditiveBias(0.1, *(torch.randn(k, dtype=D, generator=g) for k in (m, n)))
    return observations, lo.LowRankOperator(left, scale, right), bias, penalty


def residuals(observations, op, bias):
    """The exact residuals, as fractions."""
    L, s, R = op.left.tolist(), exact(op.scale), op.right.tolist()
    a, b, mean = exact(bias.rows), exact(bias.cols), Fraction(bias.mean)
    places = zip(observations.rows.tolist(), observations.cols.tolist(), strict=True)
    entries = [
        sum(Fraction(x) * t * Fraction(y) for x, t, y in zip(L[i], s, R[j], strict=True))
        + mean + a[i] + b[j]
        for i, j in places
    ]  # fmt: skip
    return [e - v for e, v in zip(entries, exact(observations.values), strict=True)]


def weights_of(observations):
    w = observations.weights
    return [Fraction(1)] * len(observations) if w is None else exact(w)


def check_residual_errors(module):
    for size in range(0, 60, 3):
        data = problem(size, size=size)
        bound = module.DualBound(*data)
        observations, op, bias, _ = data
        sizes, W = (
            lo.LowRankOperator(*(f(x) for x in op)).entries(observations.rows, observations.cols)
            for f in (torch.abs, torch.clone)
        )
        a, b = bias.rows[observations.rows].abs(), bias.cols[observations.cols].abs()
        scale = W.abs() + abs(bias.mean) + a + b + observations.values.abs()
        # The constants of the proof: an inner product of length 3, and a sum of five numbers.
        torch.testing.assert_close(
            bound.residual_errors, 2 * gamma(7) * sizes + gamma(8) * scale, rtol=1e-9, atol=0
        )
        off = zip(residuals(*data[:3]), exact(bound.residuals), strict=True)
        assert all(
            abs(a - b) <= e for (a, b), e in zip(off, exact(bound.residual_errors), strict=True)
        )


def check_objective(module):
    plain = module.DualBound(*problem(0, weighted=True))
    torch.testing.assert_close(plain.gradient(), plain.weights * plain.residuals, rtol=0, atol=0)
    for seed, size in enumerate(range(0, 60, 2)):
        data = problem(seed, size=size, weighted=True, penalty=0.3)
        squares = [
            w * e * e for w, e in zip(weights_of(data[0]), residuals(*data[:3]), strict=True)
        ]
        biases = sum(x * x for x in exact(data[2].rows) + exact(data[2].cols))
        truth = (sum(squares) + Fraction(0.3) * biases) / 2
        found = Fraction(module.DualBound(*data).objective())
        assert truth <= found
        assert size > 10 or found <= truth * Fraction(1 + 1e-9)


def check_linear(module):
    for seed in range(30):
        data = problem(seed, penalty=None if seed % 2 else 0.3)
        y = torch.randn(30, dtype=D, generator=seeded(seed))
        a, b = exact(data[2].rows), exact(data[2].cols)
        places = zip(data[0].rows.tolist(), data[0].cols.tolist(), strict=True)
        given = [Fraction(0) if data[3] else a[i] + b[j] for i, j in places]
        truth = -sum(
            x * (v - Fraction(data[2].mean) - g)
            for x, v, g in zip(exact(y), exact(data[0].values), given, strict=True)
        )
        found = Fraction(module.DualBound(*data).linear(y))
        sizes = [
            abs(v) + abs(Fraction(data[2].mean)) + (0 if data[3] else abs(a[i]) + abs(b[j]))
            for v, i, j in zip(
                exact(data[0].values), data[0].rows.tolist(), data[0].cols.tolist(), strict=True
            )
        ]
        error = sum(abs(x) * z for x, z in zip(exact(y), sizes, strict=True)) * gamma(1024 + 16)
        assert 0.97 * error <= truth - found <= 1.03 * error


def check_quadratic(module):
    for seed in range(30):
        data = problem(seed, weighted=seed % 3 > 0, penalty=0.3 if seed % 2 else None)
        y = torch.randn(30, dtype=D, generator=seeded(seed))
        # Sums that cancel: their rounding is all there is.
        y[1::2] = -y[::2] * (1 + 2.0**-40)
        truth = sum(x * x / w for x, w in zip(exact(y), weights_of(data[0]), strict=True))
        if data[3]:
            Y = np.array(exact(y), dtype=object).reshape(6, 5)
            truth += sum(x * x for k in (0, 1) for x in Y.sum(axis=k)) / Fraction(0.3)
        found = Fraction(module.DualBound(*data).quadratic(y))
        assert truth <= found <= truth * Fraction(1 + 4 * gamma(1024 + 16))


def check_margins(module):
    data = problem(0, penalty=1.0)
    y = torch.zeros(30, dtype=D)
    # Rows of 2^53, 1 and -2^53: the sum is 1, or 0 in floating point.
    y[0::5], y[1::5], y[2::5] = 2.0**53, 1.0, -(2.0**53)
    margins = module.DualBound(*data)._margins(y)[:6]
    assert bool((margins >= 1.0).all())
    y = torch.randn(30, dtype=D, generator=seeded(0))
    Y = y.view(6, 5)
    sizes = torch.cat((gamma(2 * 5 + 2) * Y.abs().sum(1), gamma(2 * 6 + 2) * Y.abs().sum(0)))
    sums = torch.cat((Y.sum(1).abs(), Y.sum(0).abs()))
    torch.testing.assert_close(
        module.DualBound(*data)._margins(y) - sums, sizes, rtol=0.3, atol=2e-15
    )


def check_sum_above(module):
    # Each summand is lost to the large one by rounding.
    low = torch.full((1000,), 2.0**-54, dtype=D)
    low[0] = 1.0
    tiny = torch.full((100,), 2.0**-600, dtype=D)
    ones = torch.ones(3000, dtype=D)
    assert module.sum_above(ones) == pytest.approx(3000 * (1 + gamma(1024 + 16)), rel=1e-15, abs=0)
    for values, truth in ((low, sum(exact(low))), (tiny.square(), 100 * Fraction(2) ** -1200)):
        found = Fraction(module.sum_above(values))
        assert truth <= found <= truth * Fraction(1 + 1e-9) + Fraction(1e-300)


def check_nuclear_norm(module):
    for seed in range(20):
        g = seeded(seed)
        rank = 1 + seed % 3
        left, right = (torch.randn(k, rank, dtype=D, generator=g) for k in (6, 5))
        op = lo.LowRankOperator(left, torch.rand(rank, dtype=D, generator=g), right)
        truth, found = sum(exact_singular_values(op)), module.nuclear_norm_above(op)
        assert truth <= found <= truth * (1 + mpmath.mpf(10) ** -11)
        norms = torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=0)
        plain = float((norms * op.scale).sum())
        margin = 2 * gamma(6 + rank + 8) if rank == 1 else gamma(64 * 6 * rank)
        assert float(found - truth) == pytest.approx(margin * plain, rel=0.3, abs=0)


DUAL_CHECKS = {
    "residuals": check_residual_errors,
    "objective": check_objective,
    "linear": check_linear,
    "quadratic": check_quadratic,
    "margins": check_margins,
    "sums": check_sum_above,
    "nuclear norm": check_nuclear_norm,
}


@pytest.mark.parametrize("check", DUAL_CHECKS.values(), ids=DUAL_CHECKS)
def test_dual_bounds_are_on_their_side_and_near(check):
    check(dual_bound_module)


DUAL_SLIPS = [
    ("residuals", "b - v, 2 * gamma", "b - v, -2 * gamma"),
    ("residuals", "2 * gamma(op.rank + 4) * sizes", "2 * gamma(op.rank + 4) / sizes"),
    ("residuals", "+ v.abs()\n", "- 9 * v.abs()\n"),
    ("objective", ".abs() + self.residual_errors", ".abs() - self.residual_errors"),
    ("objective", "sum_above(self.weights * worst.square())", "sum_above(worst.square())"),
    ("objective", "0.5 * self.bias_penalty * sum_above", "0.4 * self.bias_penalty * sum_above"),
    ("linear", "(y * shifted)) - error", "(y * shifted)) + error"),
    ("linear", "return -math.fsum", "return math.fsum"),
    ("linear", "shifted - a - b", "shifted + a + b"),
    ("quadratic", "y[positive] / self.weights", "y[positive] * self.weights"),
    ("quadratic", "(cols)) / self.bias_penalty", "(cols)) * self.bias_penalty"),
    ("margins", "sums.abs() + gamma", "sums.abs() - gamma"),
    ("margins", "* sizes)\n", "/ sizes)\n"),
    ("sums", "+ lost", "- lost"),
    ("sums", "+ lost) * (1 + gamma", "+ lost) * (1 - gamma"),
    ("nuclear norm", "+ backward * plain", "- backward * plain"),
    ("nuclear norm", "* (1 + 2 * gamma(longest", "* (1 - 2 * gamma(longest"),
    ("nuclear norm", "64 * longest * op.rank", "2**36 * longest * op.rank"),
]


@pytest.mark.parametrize(("name", "old", "new"), DUAL_SLIPS)
def test_a_slip_in_a_dual_bound_is_noticed(name, old, new):
    with pytest.raises(AssertionError):
        DUAL_CHECKS[name](mutated(dual_bound_module, old, new))


class Terms:
    """Parts of a dual bound that are given numbers."""

    part = None

    def __init__(self, linear, quadratic):
        self.parts = linear, quadratic
        self.observations = self

    def gradient(self):
        return torch.ones(1, dtype=D)

    def with_values(self, _y):
        return self

    def linear(self, _y):
        return self.parts[0]

    def quadratic(self, _y):
        return self.parts[1]


def numbers(count=400):
    return torch.rand(count, 3, dtype=D, generator=seeded(7)).tolist()


def check_multiple_over_a_set(module):
    ball = lo.SchattenBall(1, 1.0, 1)
    for a, q, s in numbers():
        module.support_function = lambda *_, s=s: (s, 0.0)
        found, _ = module._lower_bound(Terms(1 + a, q), ball, None)
        best = (Fraction(1 + a) - Fraction(s)) ** 2 / (2 * Fraction(q))
        assert best * Fraction(1 - 1e-12) <= Fraction(found) <= best


def check_multiple_of_a_penalty(module):
    for a, q, s in numbers():
        module.largest_singular_value = lambda *_, s=s: (s, 0.0)
        found, _ = module._lower_bound(Terms(a, q), 0.7, None)
        t = min(Fraction(a) / Fraction(q), Fraction(0.7) / Fraction(s))
        best = t * Fraction(a) - t * t * Fraction(q) / 2
        assert best * Fraction(1 - 1e-12) <= Fraction(found) <= best


def check_gap(module):
    for a, b, _ in numbers():
        # Far apart, close, and below the bound by rounding.
        above = (1e3 * a, 1.5 * b, b * (1 - EPS))[int(3e6 * a) % 3]
        found = module.OptimalityCertificate(above, b)
        difference = Fraction(above) - Fraction(b)
        assert found.gap / b == found.relative_gap
        assert difference <= Fraction(found.gap)
        assert Fraction(found.gap) <= max(difference, 0) * Fraction(1 + 1e-15)


def check_objective_above(module):
    observations = lo.Observations([0, 1], [0, 1], [3.0, 1.0], (2, 2))
    op = lo.LowRankOperator.from_dense(torch.diag(torch.tensor([2.0, 0.3], dtype=D)))
    penalised = certificate_module.ConvexProblem(observations, 0.7)
    found = module.certify_completion(penalised, op).objective
    mean = 0.0
    truth = ((2.0 + mean - 3) ** 2 + (0.3 - 1) ** 2) / 2 + 0.7 * 2.3
    assert truth - 1e-15 <= found <= truth + 1e-12


BOUND_CHECKS = {
    "set": check_multiple_over_a_set,
    "penalty": check_multiple_of_a_penalty,
    "gap": check_gap,
    "objective": check_objective_above,
}


def fresh(module):
    """Another copy, whose names can be replaced."""
    source = Path(module.__file__).read_text().splitlines()[-1]
    return mutated(module, source, source)


@pytest.mark.parametrize("check", BOUND_CHECKS.values(), ids=BOUND_CHECKS)
def test_certificates_are_on_their_side_and_near(check):
    check(fresh(certificate_module))


BOUND_SLIPS = [
    ("set", "slope -= 4 * U", "slope += 4 * U"),
    ("set", "slope -= 4 * U *", "slope -= 4 / U *"),
    ("set", "linear - support, math.inf", "linear + support, math.inf"),
    ("set", "bound - gamma(16)", "bound + gamma(16)"),
    ("set", "0.5 * t * t * quadratic", "0.4 * t * t * quadratic"),
    ("set", "min(slope / quadratic, limit)", "min(slope * quadratic, limit)"),
    ("penalty", "constraint / top * (1 - 4 * U)", "constraint * top * (1 - 4 * U)"),
    ("penalty", "bound - gamma(16)", "bound + gamma(16)"),
    ("penalty", "min(slope / quadratic, limit)", "slope / quadratic"),
    ("gap", "math.nextafter(difference, math.inf)", "math.nextafter(difference, -math.inf)"),
    ("gap", "max(difference, 0.0) if", "min(difference, 0.0) if"),
    ("objective", "objective += problem.constraint *", "objective -= problem.constraint *"),
]


@pytest.mark.parametrize(("name", "old", "new"), BOUND_SLIPS)
def test_a_slip_in_a_certificate_is_noticed(name, old, new):
    with pytest.raises(AssertionError):
        BOUND_CHECKS[name](mutated(certificate_module, old, new))
