"""Proved norms are the norms to twelve digits: against fifty digits, whatever their size."""

import math

import mpmath
import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import CertificateError
from lowrank_opt.parameterizations.certificate import certify
from tests.oracles import D, normal
from tests.unit.parameterizations.test_certificate import exact_singular_values
from tests.unit.parameterizations.test_proofs import SETS, member


def cancelling(feasible):
    """Two terms of 1e3 that leave 1e-10, beside one of 1e-13: a float64 of it has few digits."""
    a, b = normal(6, 1), normal(5, 1, seed=9)
    return lo.LowRankOperator(
        torch.cat((a, a * (1 + 1e-13), normal(6, 1, seed=4)), 1),
        torch.tensor([1e3, -1e3, 1e-13], dtype=D),
        torch.cat((b, b, normal(5, 1, seed=5)), 1),
    )


SIZES = {
    "one": lambda feasible: member(feasible, D),
    "1e-70": lambda feasible: member(feasible, D) * 1e-70,
    "1e70": lambda feasible: member(feasible, D) * 1e70,
    "cancelling": cancelling,
    "zero": lambda feasible: member(feasible, D) * 0.0,
}
NORMS = {
    "Frobenius": lambda s: mpmath.sqrt(sum(x * x for x in s)),
    "spectral": lambda s: s[0],
    "nuclear": sum,
    "Schatten 3": lambda s: sum(x**3 for x in s) ** (mpmath.mpf(1) / 3),
    "Schatten 3/2": lambda s: sum(x**1.5 for x in s) ** (mpmath.mpf(2) / 3),
    "Ky Fan": lambda s: s[0] + s[1],
}


@pytest.mark.parametrize(("name", "norm"), NORMS.items(), ids=NORMS)
@pytest.mark.parametrize("make", SIZES.values(), ids=SIZES)
def test_proved_norms_are_the_norms_to_twelve_digits(name, norm, make):
    op = make(SETS[name])
    certificate = certify(op, SETS[name], exact=True)
    bound = mpmath.mpf(float.fromhex(certificate.document["claim"]["bound"]))
    true_values, least = exact_singular_values(op), mpmath.mpf(10) ** -300
    with mpmath.workdps(50):
        values, truth = [mpmath.mpf(x) for x in certificate.singular_values], norm(true_values)
        for found in (bound, norm(values)):
            assert truth * (1 - mpmath.mpf(10) ** -45) <= found
            assert found <= truth * (1 + mpmath.mpf(10) ** -12) + least


def test_values_of_many_columns_are_what_the_claim_says():
    # Each would take an elimination: a Frobenius norm is quick, and bounds the i-th by 1 / sqrt(i).
    op = lo.LowRankOperator(normal(20, 16), torch.ones(16, dtype=D), normal(18, 16))
    certificate = certify(op, lo.SchattenBall(2, 1.0, 16), exact=True)
    expected = np.linalg.norm((op.left @ op.right.mT).numpy()) / np.sqrt(np.arange(1, 17))
    np.testing.assert_allclose(certificate.singular_values, expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_norms_beyond_float64_are_refused(p):
    large = torch.full((1, 1), 1e200, dtype=D)
    op = lo.LowRankOperator(large, torch.ones(1, dtype=D), large)
    with pytest.raises(CertificateError, match="float64 holds"):
        certify(op, lo.SchattenBall(p, 1.0, 1), exact=True)
