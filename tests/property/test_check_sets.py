"""Every set of the library keeps the laws of sets, and the laws notice broken ones."""

import math
from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.sets import NestedSet, ShiftedSet, WeightedSet
from lowrank_opt.testing import SET_LAWS, BrokenLawError, Case, check_set, check_spectral_set
from lowrank_opt.testing.search.describe import describe
from tests.property.broken_set_families import BROKEN_SET_FAMILIES
from tests.property.broken_set_views import BROKEN_SET_VIEWS
from tests.property.broken_sets import BROKEN_SETS, Ball
from tests.property.programs import raises_again
from tests.property.turned_sets import BROKEN_TURNED_SETS, turned

Shape = tuple[int, int]


def weighted(shape: Shape, rank: int, *, dtype: torch.dtype) -> WeightedSet:
    rows, cols = (torch.linspace(0.2, 2.0, side, dtype=dtype) for side in shape)
    return WeightedSet(lo.SchattenBall(1, 2.0, rank), rows, cols)


def shifted(shape: Shape, rank: int, *, dtype: torch.dtype) -> ShiftedSet:
    ball, generator = lo.SchattenBall(2, 1.0, rank), torch.Generator().manual_seed(1)
    return ShiftedSet(ball, ball.sample(shape, generator=generator, dtype=dtype))


def nested(shape: Shape, rank: int, *, dtype: torch.dtype) -> NestedSet:
    frames = (
        torch.linalg.qr(torch.randn(side, (side + rank + 1) // 2, dtype=dtype)).Q for side in shape
    )
    return NestedSet(lo.SchattenBall(1, 1.5, rank), *frames)


def box(rank: int) -> lo.SingularValueBox:
    return lo.SingularValueBox([2.0 / (1 + i) for i in range(rank)])


BROKEN = [*BROKEN_SETS, *BROKEN_SET_VIEWS, *BROKEN_SET_FAMILIES, *BROKEN_TURNED_SETS]

SETS = [
    lo.RankAtMost,
    partial(lo.SchattenBall, 1, 2.0),
    partial(lo.SchattenBall, 2, 1e-3),
    partial(lo.SchattenBall, math.inf, 1e4),
    partial(lo.SchattenBall, 1.5, 1.0),
    partial(lo.KyFanBall, 2, 1.0),
    box,
    weighted,
    shifted,
    nested,
    turned,
    Ball,
]


@pytest.mark.parametrize("make", SETS, ids=describe)
def test_laws_in_float64(make) -> None:
    verdicts = check_set(make, profile="quick")
    assert {v.status for v in verdicts} <= {"passed", "skipped"}


@pytest.mark.parametrize("make", SETS, ids=describe)
def test_laws_in_float32(make) -> None:
    check_set(make, profile="quick", dtype=torch.float32)


@pytest.mark.parametrize(("make", "law"), BROKEN, ids=[describe(m) for m, _ in BROKEN])
def test_law_catches_defect_of_a_set(make, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_set(make, only=[law])
    assert law == caught.value.law
    raises_again(caught.value, make=make)


def test_a_set_itself_can_be_checked() -> None:
    assert len(SET_LAWS) == len(check_set(lo.SchattenBall(2, 1.0, 3), profile="quick"))


def test_counter_example_is_one_case() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_set(BROKEN_SETS[0][0], only=["projection"])
    assert isinstance(caught.value.case, Case)
    assert "check_set(make, only=['projection'], case=case" in caught.value.code
    with pytest.raises(BrokenLawError):
        exec(caught.value.code)


def test_expected_failures_are_collected() -> None:
    make, law = BROKEN_SETS[0]
    verdicts = check_set(
        make, profile="quick", expected_failures={law: "planted"}, on_fail="collect"
    )
    assert "expected_failure" == {v.check: v.status for v in verdicts}[law]


def test_names_of_laws_are_checked() -> None:
    with pytest.raises(OptionError, match="only must name laws"):
        check_set(lo.RankAtMost, only=["rnak"])


def test_today_s_name_is_kept() -> None:
    assert check_set is check_spectral_set
