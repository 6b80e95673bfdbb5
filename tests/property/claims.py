"""What a parameterization does not claim is said beforehand: a law neither skips nor slips in."""

from collections.abc import Collection

import pytest

# A set that is not bounded is not left by scaling, and has no least value of a linear function.
UNBOUNDED = ("escape", "lmo")


def keeps(make, check, unclaimed: Collection[str] = ()) -> None:
    """Check a law; it must apply, unless it is about an ability that is known not to be claimed."""
    applies = True
    try:
        check(make)
    except pytest.skip.Exception:
        applies = False
    assert applies == (check.law.name not in unclaimed)
