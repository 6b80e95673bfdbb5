"""Bounds on membership are on their side, and slips in them are noticed."""

import math

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.parameterizations import certificate as membership_module
from tests.builders import seeded
from tests.slips import mutated
from tests.unit.parameterizations.test_certificate import exact_singular_values

D = torch.float64
EPS = 2.0**-52


def triples():
    for seed in range(12):
        g, rank = seeded(seed), 1 + seed % 4
        left, right = (torch.randn(k, rank, dtype=D, generator=g) for k in (7, 5))
        yield lo.LowRankOperator(left, 100 * torch.rand(rank, dtype=D, generator=g), right)


def check_margin(module):
    for op in triples():
        m, n, r = *op.shape, op.rank
        norms = torch.linalg.vector_norm(op.left, dim=0) * torch.linalg.vector_norm(op.right, dim=0)
        size = float((norms * op.scale).sum())
        margin = module.proved_values(op) - op.singular_values()
        least = 8 * math.sqrt(m + n + r) * r * EPS * size
        assert module._margin(op) * size == pytest.approx(least, rel=1e-9, abs=0)
        assert bool((margin >= 0.9 * least).all())
        # Norms are bounded by the largest entry: sqrt(m n) times at most.
        assert bool((margin <= 1.1 * math.sqrt(m * n) * least).all())


def check_bounds(module):
    for op in triples():
        bounds = module.proved_values(op).tolist()
        assert all(a >= b for a, b in zip(bounds, exact_singular_values(op), strict=False))


def check_exact_claims(module):
    """Nothing that is outside by less than the margin is claimed to be inside."""
    eye = torch.eye(6, 3, dtype=D)
    for p, radius in ((1.0, 1.0), (2.0, 1e3), (math.inf, 1e-3)):
        ball = lo.SchattenBall(p, radius, 3)
        op = ball.project(lo.LowRankOperator(eye, torch.full((3,), 9e3, dtype=D), eye[:5]))
        assert not module.certify(op * (1 + 4 * EPS), ball).exact
        assert not module.Certificate(ball, 3, (radius,), 5e-324, 0.0).exact
        assert module.certify(op * (1 + 4 * EPS), ball).holds
        assert not module.certify(op * (1 + 40 * EPS), ball).holds
        assert module.certify(op * (1 - 1e-11), ball).exact


def check_shifted_claims(module):
    """Without a spectral form the computed excess is raised by the rounding of float64."""
    eye = torch.eye(6, 3, dtype=D)
    offset = lo.LowRankOperator(eye, torch.tensor([1.0, 0.0, 0.0], dtype=D), eye[:5])
    shifted = lo.ShiftedSet(lo.SchattenBall(math.inf, 4.0, 3), offset)
    # The size is that of the ball and of the offset; the rank that of both.
    unit, root = 5.0, math.sqrt(shifted.rank)
    rounding = 16 * EPS * root * unit
    for size in (1.0, 5.0):
        op = lo.LowRankOperator(eye, torch.tensor([size, 0, 0], dtype=D), eye[:5])
        found, excess = module.certify(op, shifted), max(0.0, size + 1 - 4)
        assert found.excess - excess == pytest.approx(rounding, rel=0.05, abs=0)
        assert found.tolerance == pytest.approx(2 * rounding, rel=1e-9, abs=0)
        assert not found.exact
        assert (size < 2) == found.holds


MEMBERSHIP_CHECKS = {
    "margin": check_margin,
    "bounds": check_bounds,
    "claims": check_exact_claims,
    "shifted": check_shifted_claims,
}


@pytest.mark.parametrize("check", MEMBERSHIP_CHECKS.values(), ids=MEMBERSHIP_CHECKS)
def test_membership_is_bounded_from_above(check):
    check(membership_module)


MEMBERSHIP_SLIPS = [
    ("margin", "sigma + _margin(op)", "sigma - _margin(op)"),
    ("margin", "+ op.rank) * op.rank *", "+ op.rank) / op.rank *"),
    ("margin", "8 * math.sqrt(sum(op.shape)", "math.sqrt(sum(op.shape)"),
    ("margin", "math.sqrt(m) * math.sqrt(n) *", "math.sqrt(m) / math.sqrt(n) *"),
    ("margin", "((low * high) * middle)", "((low / high) * middle)"),
    ("bounds", "terms.count_nonzero()) :]", "terms.count_nonzero()) - 1 :]"),
    ("claims", "tolerance += max(0.0, excess)", "tolerance += 9 * max(0.0, excess)"),
    ("claims", "self.excess <= self.tolerance", "self.excess <= 9 * self.tolerance"),
    ("claims", "return self.excess <= 0.0", "return self.excess <= 1e-13"),
    ("claims", "op.dtype, feasible_set.rank) * unit", "op.dtype, feasible_set.rank) / unit"),
    ("shifted", "feasible_set.excess(op) + margin, tol", "feasible_set.excess(op) - margin, tol"),
    ("shifted", "+ margin, tolerance + margin", "+ margin, tolerance - margin"),
    ("shifted", "torch.float64, feasible_set.rank) * unit", "torch.float64, 1) * unit"),
]


@pytest.mark.parametrize(("name", "old", "new"), MEMBERSHIP_SLIPS)
def test_a_slip_in_a_membership_bound_is_noticed(name, old, new):
    with pytest.raises(AssertionError):
        MEMBERSHIP_CHECKS[name](mutated(membership_module, old, new))
