"""Each law notices the defects that it is there for."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.testing import LAWS, BrokenLawError, Law
from lowrank_opt.testing.search.describe import describe
from tests.property.broken import BROKEN_MAPS, LeaksFloat64, Product
from tests.property.broken_calls import BROKEN_CALLS
from tests.property.broken_in_corners import BROKEN_IN_CORNERS
from tests.property.broken_promises import BROKEN_PROMISES
from tests.property.broken_rarely import BROKEN_RARELY
from tests.property.broken_state import BROKEN_STATE
from tests.property.claims import PROFILES
from tests.property.programs import raises_again

BROKEN = [
    *BROKEN_MAPS,
    *BROKEN_STATE,
    *BROKEN_IN_CORNERS,
    *BROKEN_CALLS,
    *BROKEN_PROMISES,
    *BROKEN_RARELY,
]
LAW_OF: dict[str, Law] = {law.name: law for law in LAWS}
IDS = [f"{describe(make)}-{law}-{str(dtype)[6:]}" for make, law, dtype in BROKEN]


@pytest.mark.parametrize(("make", "law", "dtype"), BROKEN, ids=IDS)
def test_law_catches_defect(make, law, dtype) -> None:
    with pytest.raises(BrokenLawError) as caught:
        LAW_OF[law](make, dtype=dtype)
    assert law == caught.value.law
    raises_again(caught.value, make=make)


FEW_CASES = [x for x in zip(BROKEN, IDS, strict=True) if PROFILES[x[0][1]] != "standard"]


@pytest.mark.parametrize(
    ("make", "law", "dtype"), [x for x, _ in FEW_CASES], ids=[i for _, i in FEW_CASES]
)
def test_defect_is_met_by_the_cases_that_the_library_is_tried_on(make, law, dtype) -> None:
    assert "failed" == LAW_OF[law].verdict(make, dtype=dtype, profile=PROFILES[law]).status


@pytest.mark.parametrize("law", LAW_OF)
def test_law_passes_the_sound_class_of_the_defects(law) -> None:
    assert LAW_OF[law](Product, profile="quick").status in ("passed", "skipped")


def test_every_law_has_a_defect_to_catch() -> None:
    assert set(LAW_OF) == {law for _, law, _ in BROKEN}


def test_counter_example_is_small() -> None:
    with pytest.raises(BrokenLawError) as caught:
        LAW_OF["dtype"](LeaksFloat64, dtype=torch.float32)
    assert ((1, 1), 1) == (caught.value.case.shape, caught.value.case.rank)


def test_counter_example_runs() -> None:
    with pytest.raises(BrokenLawError) as caught:
        LAW_OF["membership"](_one_percent_too_large, dtype=torch.float32)
    with pytest.raises(BrokenLawError, match="leaves SchattenBall"):
        exec(caught.value.code.replace("make = ...", "make = _one_percent_too_large"), globals())


def _one_percent_too_large(shape, rank, *, dtype):
    class Grown(lo.HomogeneousBall):
        def factors(self):
            return 1.01 * super().factors()

    return Grown(shape, rank, radius=1.0, dtype=dtype)
