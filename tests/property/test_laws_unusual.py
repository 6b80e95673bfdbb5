"""No law refuses a sound class because it is unusual."""

import pytest

from lowrank_opt.testing import check_parameterization
from tests.property.unusual import UNUSUAL


@pytest.mark.parametrize("make", UNUSUAL)
def test_no_law_refuses_a_sound_class(make) -> None:
    verdicts = check_parameterization(make, profile="quick")
    assert {v.status for v in verdicts} <= {"passed", "skipped"}
