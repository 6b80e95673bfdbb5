"""Certificates and export in exact arithmetic: fractions and fifty digits."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError
from lowrank_opt.parameterizations.certificate import certify, export, proved_values
from tests.oracles import D, dense, fill, matrix, normal

LOW = [torch.float16, torch.bfloat16, torch.float32]


def exact_singular_values(op, rows=None, cols=None):
    """Singular values of the exact product of the stored numbers, to fifty digits.

    Entries are summed as fractions: no rounding before the decomposition.
    """
    left, scale, right = (x.detach().double().tolist() for x in op)
    a = [1] * len(left) if rows is None else [Fraction(x) for x in rows.tolist()]
    b = [1] * len(right) if cols is None else [Fraction(x) for x in cols.tolist()]
    W = [
        [
            sum(
                Fraction(f) * Fraction(s) * Fraction(g) for f, s, g in zip(u, scale, v, strict=True)
            )
            / (x * y)
            for v, y in zip(right, b, strict=True)
        ]
        for u, x in zip(left, a, strict=True)
    ]
    with mpmath.workdps(50):
        M = mpmath.matrix([[mpmath.mpf(e.numerator) / e.denominator for e in row] for row in W])
        return sorted(mpmath.svd_r(M, compute_uv=False), reverse=True)


SATURATED = {
    "NBLoRA": (lambda k: lo.NBLoRA((5, 4), 2, radius=0.7, **k), lambda s: max(s) - 0.7),
    "NBLoRA nuclear": (
        lambda k: lo.NBLoRA((5, 4), 2, radius=0.7, p=1, **k),
        lambda s: sum(s) - 0.7,
    ),
    "NBLoRA ky fan": (
        lambda k: lo.NBLoRA((5, 4), 3, radius=0.7, ky_fan=2, **k),
        lambda s: s[0] + s[1] - 0.7,
    ),
    "NBLoRA bounds": (
        lambda k: lo.NBLoRA((5, 4), 3, bounds=[0.7, 0.5, 0.1], **k),
        lambda s: max(a - b for a, b in zip(s, [0.7, 0.5, 0.1], strict=False)),
    ),
    "NBLoRA zero bound": (
        lambda k: lo.NBLoRA((5, 4), 2, bounds=[0.7, 0.0], **k),
        lambda s: max(s[0] - 0.7, s[1] - mpmath.mpf(10) ** -30),
    ),
    "HomogeneousBall": (
        lambda k: lo.HomogeneousBall((5, 4), 2, radius=0.7, **k),
        lambda s: sum(s) - 0.7,
    ),
    "DeLoRA": (lambda k: lo.DeLoRA((5, 4), 3, radius=0.7, **k), lambda s: sum(s) - 0.7),
    "NestedSVD": (
        lambda k: lo.NestedSVD(normal(5, 4), lo.NBLoRA((3, 3), 2, radius=0.7, **k)),
        lambda s: max(s) - 0.7,
    ),
}
every_saturated = pytest.mark.parametrize(("make", "excess"), SATURATED.values(), ids=SATURATED)


@every_saturated
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_export_holds_in_exact_arithmetic(make, excess, dtype):
    layer = make({"dtype": D}).assign(10 * normal(5, 4), project=True)
    op = layer.export(dtype)
    assert dtype == op.left.dtype == op.right.dtype
    assert excess(exact_singular_values(op)) <= 0
    assert op.rank <= layer.rank


@every_saturated
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6)],
    ids=str,
)
def test_export_is_near(make, excess, dtype, rtol):
    layer = make({"dtype": D}).assign(10 * normal(5, 4), project=True)
    error = np.linalg.norm(dense(layer.export(dtype)) - dense(layer()))
    assert error <= rtol * np.linalg.norm(dense(layer()))


def test_export_of_weighted_holds_in_exact_arithmetic():
    rows, cols = torch.linspace(0.3, 2, 5, dtype=D), torch.linspace(3, 1, 4, dtype=D)
    layer = lo.Weighted(lo.HomogeneousBall((5, 4), 2, radius=0.7, dtype=D), rows, cols)
    op = layer.assign(10 * normal(5, 4), project=True).export(torch.bfloat16)
    assert sum(exact_singular_values(op, rows, cols)) <= 0.7


def test_export_of_nora_keeps_its_rank():
    layer = fill(lo.nora(normal(5, 4), 2, outer_rank=3))
    op = layer.export(torch.bfloat16)
    assert exact_singular_values(op)[2] < 1e-30
    error = np.linalg.norm(dense(op) - dense(layer()))
    assert error <= 2e-2 * np.linalg.norm(dense(layer()))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_export_of_zero_is_zero(dtype):
    assert not dense(lo.NBLoRA((5, 4), 2, radius=0.7).export(dtype)).any()


def test_rounding_alone_would_leave_the_ball():
    # What export is for: factors rounded to bfloat16 without a shrunk scale exceed the bound.
    layer = lo.NBLoRA((5, 4), 2, radius=0.7, dtype=D).assign(10 * normal(5, 4), project=True)
    outside = [
        exact_singular_values(fill_rotated(layer, seed).to(dtype=torch.bfloat16))[0] > 0.7
        for seed in range(5)
    ]
    assert any(outside)


def fill_rotated(layer, seed):
    return layer.assign(10 * normal(5, 4, seed=seed), project=True)().detach()


def test_export_refuses_an_operator_outside():
    op = lo.LowRankOperator.from_dense(torch.tensor(matrix(5, 4, np.array([2.0, 1.0]))), 2)
    with pytest.raises(
        NotInSetError, match=r"export needs a member .* excess of 1\.30e\+00"
    ) as caught:
        export(op, lo.SchattenBall(math.inf, 0.7, 2), torch.bfloat16)
    assert caught.value.excess == pytest.approx(1.3)


def test_export_refuses_sets_without_spectral_form():
    with pytest.raises(NotInSetError, match=r"spectral form.*export the inner parameterization"):
        fill(lo.Offset(lo.NBLoRA((5, 4), 2, radius=0.7))).export(torch.bfloat16)


@every_saturated
@pytest.mark.parametrize("dtype", [*LOW, D], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4])
def test_certified_values_are_upper_bounds(make, excess, dtype, size):
    layer = fill(make({"dtype": dtype}), size)
    certificate = layer.certify()
    exact = exact_singular_values(layer())[: len(certificate.singular_values)]
    assert all(
        bound >= value - mpmath.mpf(10) ** -40
        for bound, value in zip(certificate.singular_values, exact, strict=True)
    )
    assert certificate.holds
    assert excess(exact_singular_values(layer())) <= max(certificate.excess, 0.0) + 1e-30


@pytest.mark.parametrize("seed", range(8))
def test_certified_values_are_upper_bounds_where_terms_cancel(seed):
    # W is 1e-10 of its terms: rounding is that of the terms, a margin relative to W missed it.
    a, b = normal(6, 1, seed=seed), normal(5, 1, seed=seed + 50)
    op = lo.LowRankOperator(
        torch.cat((a, a * (1 + 1e-13)), dim=1),
        torch.tensor([1e3, -1e3], dtype=D),
        torch.cat((b, b), 1),
    )
    assert float(proved_values(op)[0]) >= exact_singular_values(op)[0]


def test_certified_values_are_close_to_the_values():
    layer = fill(lo.NBLoRA((5, 4), 2, radius=0.7, dtype=D))
    exact = [float(x) for x in exact_singular_values(layer())[:2]]
    np.testing.assert_allclose(layer.certify().singular_values, exact, rtol=1e-12)


def test_absent_terms_have_no_singular_value():
    op = lo.LowRankOperator(normal(5, 3), torch.tensor([1.0, 0.0, 0.0]).double(), normal(4, 3))
    assert [0.0, 0.0] == proved_values(op).tolist()[1:]


def test_interior_is_certified_exactly_and_the_boundary_is_not():
    layer = lo.NBLoRA((5, 4), 2, radius=0.7, dtype=D)
    assert layer.assign(torch.tensor(matrix(5, 4, np.array([0.5, 0.1])))).certify().exact
    boundary = layer.assign(torch.tensor(matrix(5, 4, np.array([0.7, 0.1])))).certify()
    assert boundary.holds
    assert not boundary.exact


def test_certificate_of_an_operator_outside_does_not_hold():
    op = lo.LowRankOperator.from_dense(torch.tensor(matrix(5, 4, np.array([2.0, 1.0]))))
    certificate = certify(op, lo.SchattenBall(math.inf, 0.7, 2))
    assert not certificate.holds
    assert certificate.excess == pytest.approx(1.3)


def test_certificate_counts_values_beyond_the_rank():
    op = lo.LowRankOperator.from_dense(torch.tensor(matrix(5, 4, np.array([0.3, 0.2, 0.1]))))
    assert certify(op, lo.SchattenBall(1, 7.0, 2)).excess == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: lo.Factored((5, 4), 2),
        lambda: lo.DeLoRA((5, 4), 2, radius=1.0, variant="paper"),
        lambda: lo.Offset(lo.DeLoRA((5, 4), 2, radius=1.0)),
    ],
    ids=["Factored", "paper", "Offset"],
)
def test_other_sets_are_certified_too(make):
    assert fill(make()).certify().holds
