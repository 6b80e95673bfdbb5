"""Adapters of the library keep the laws of adapters, and the laws notice broken ones."""

from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.testing import ADAPTER_LAWS, BrokenLawError, check_adapter
from lowrank_opt.testing.search.describe import describe
from tests.property.broken_adapter_uses import BROKEN_ADAPTER_USES
from tests.property.broken_adapters import BROKEN_ADAPTERS, SOUND
from tests.property.programs import raises_again


def offset_factored(shape) -> lo.Offset:
    return lo.Offset(lo.Factored(shape, 1))


MAKES = [
    lo.Factored,
    partial(lo.NBLoRA, radius=1.0),
    partial(lo.HomogeneousBall, radius=2.0),
    partial(lo.DeLoRA, radius=2.0),
    partial(lo.RadialBall, radius=2.0),
    offset_factored,
]


@pytest.mark.parametrize("make", MAKES, ids=describe)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adapters_keep_the_laws(make, dtype) -> None:
    profile = "standard" if dtype == torch.float64 else "quick"
    verdicts = check_adapter(make, dtype=dtype, profile=profile)
    assert {"passed"} == {v.status for v in verdicts}
    assert [law.name for law in ADAPTER_LAWS] == [v.check for v in verdicts]


def test_the_sound_adapter_of_the_defects_passes() -> None:
    make, method = SOUND
    check_adapter(make, method=method, profile="quick")


@pytest.mark.parametrize(("make", "method", "law"), [*BROKEN_ADAPTERS, *BROKEN_ADAPTER_USES])
def test_law_catches_defect_of_an_adapter(make, method, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_adapter(make, method=method, only=[law])
    assert law == caught.value.law
    raises_again(caught.value, make=make, method=method)


def test_counter_example_names_the_model() -> None:
    make, method, law = BROKEN_ADAPTERS[1]
    with pytest.raises(BrokenLawError, match=r"linear: forward differs from F\(x; W0 \+ dW\)"):
        check_adapter(make, method=method, only=[law])
