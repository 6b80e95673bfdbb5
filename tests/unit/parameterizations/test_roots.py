"""The checker's roots: exact where they can be, else on the side that was asked for."""

import math
from fractions import Fraction

import pytest

from lowrank_opt import check_certificate as checker
from lowrank_opt.errors import CertificateError
from lowrank_opt.proofs import hexes, order, seal, stamped

ULP = Fraction(1, 2**200)


@pytest.mark.parametrize("order", [1, 2, 3, 16])
@pytest.mark.parametrize("base", [Fraction(0), Fraction(1), Fraction(3, 4), Fraction(10**6), ULP])
def test_roots_of_powers_are_exact_on_both_sides(base, order):
    assert {base} == {checker.root(base**order, order, up) for up in (True, False)}


@pytest.mark.parametrize("order", [2, 3, 16])
@pytest.mark.parametrize(
    "x", [Fraction(2), Fraction(1, 3), Fraction(10**40, 7), Fraction(1, 10**30), ULP**40 / 3]
)
def test_other_roots_lie_between_neighbours(x, order):
    low, high = (checker.root(x, order, up) for up in (False, True))
    assert low**order < x < high**order
    assert high - low <= ULP * min(1, 4 * high)


def document(value, bound, p, weights=()):
    return stamped(
        {
            "kind": "norm",
            **{name: hexes([[1.0]]) for name in ("left", "right")},
            "scale": hexes([value]),
            "values": hexes([value]),
            "claim": {"norm": p, "rank": 1, "bound": hexes(bound)},
            **({"row_weights": hexes(list(weights))} if weights else {}),
        }
    )


def test_irrational_powers_are_rounded_against_the_claim():
    # 2^(3/2) on both sides: equal, but not proved, as each is rounded away from the other.
    with pytest.raises(checker.RefusedError, match="the norm is larger"):
        checker.check(document(2.0, 2.0, "3/2"))
    checker.check(document(2.0, math.nextafter(2.0, 3.0), "3/2"))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_that_are_not_positive_are_named(weight):
    with pytest.raises(checker.RefusedError, match="weights must be positive"):
        checker.check(document(1.0, 1.0, "1", [weight]))


@pytest.mark.parametrize("p", ["17/16", "512", "511/2"])
def test_orders_that_are_proved(p):
    assert Fraction(p) == order(float(Fraction(p)))
    checker.check(document(1.0, 1.0, p))


@pytest.mark.parametrize("p", ["33/32", "513"])
def test_orders_that_take_too_long(p):
    with pytest.raises(CertificateError, match="a denominator up to 16"):
        order(float(Fraction(p)))
    with pytest.raises(checker.RefusedError, match="an order without a proof"):
        checker.check(document(1.0, 1.0, p))


def test_only_what_the_checker_accepts_is_sealed():
    sealed = seal(document(2.0, 2.0, "inf"))
    assert sealed["digest"] == checker.digest(sealed)
    with pytest.raises(checker.RefusedError, match="the norm is larger"):
        seal(document(2.0, math.nextafter(2.0, 0.0), "inf"))
