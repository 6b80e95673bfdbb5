"""What a parameterization does not claim is said beforehand: a law neither skips nor slips in."""

from collections.abc import Collection

import pytest

from lowrank_opt.testing import LAWS

# Some defects of these two laws are met in one case of many: planted ones are missed by few cases.
# Those of the other laws are all found by the profile "quick"; `test_laws_catch` has both found.
DEEP = ("membership", "completeness")
PROFILES = {law.name: "standard" if law.name in DEEP else "quick" for law in LAWS}

# What a module does with its state and its generators is the same in every dtype, and so are the
# defects that were planted for these laws: the library is tried on them in float64 alone.
# Derivatives are always computed in float64, and precision is membership in the other dtype.
OF_ANY_DTYPE = (
    "derivatives",
    "precision",
    "purity",
    "copies",
    "in_place",
    "generators",
    "repeats",
    "writes",
    "seen",
    "journey",
    "never_dense",
)

# A set that is not bounded is not left by scaling, and has no least value of a linear function.
UNBOUNDED = ("escape", "lmo")


def where_rounding_matters(mark: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Return the mark of `parametrize_with_checks` without the laws of any dtype."""
    names, cases = mark.args
    kept = [case for case in cases if case.values[1].law.name not in OF_ANY_DTYPE]
    return pytest.mark.parametrize(names, kept)


def keeps(make, check, unclaimed: Collection[str] = ()) -> None:
    """Check a law; it must apply, unless it is about an ability that is known not to be claimed."""
    applies = True
    try:
        check(make)
    except pytest.skip.Exception:
        applies = False
    assert applies == (check.law.name not in unclaimed)
