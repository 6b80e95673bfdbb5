"""The operator keeps the laws of operators, and the laws notice broken ones."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.testing import OPERATOR_LAWS, BrokenLawError, check_operator
from lowrank_opt.testing.search.describe import describe
from tests.property.broken_operator_views import BROKEN_OPERATOR_VIEWS
from tests.property.broken_operators import BROKEN_OPERATORS
from tests.property.programs import raises_again

BROKEN = [*BROKEN_OPERATORS, *BROKEN_OPERATOR_VIEWS]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_operator_keeps_the_laws(dtype) -> None:
    verdicts = check_operator(lo.LowRankOperator, dtype=dtype)
    assert {"passed"} == {v.status for v in verdicts}
    assert [law.name for law in OPERATOR_LAWS] == [v.check for v in verdicts]


def test_function_of_shape_and_rank() -> None:
    def sample(shape, rank):
        return lo.SchattenBall(1, 2.0, rank).sample(shape)

    verdicts = check_operator(sample, profile="quick")
    assert ["triple", "elsewhere", "batches", "gradients"] == [
        v.check for v in verdicts if v.status == "skipped"
    ]


def test_one_operator() -> None:
    op = lo.LowRankOperator(torch.ones(5, 2), torch.tensor([1.0, -2.0]), torch.ones(3, 2))
    assert {"passed", "skipped"} == {v.status for v in check_operator(op)}


@pytest.mark.parametrize(("make", "law"), BROKEN, ids=[describe(m) for m, _ in BROKEN])
def test_law_catches_defect_of_an_operator(make, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_operator(make, only=[law])
    assert law == caught.value.law
    raises_again(caught.value, make=make)


def test_one_broken_operator_is_noticed() -> None:
    op = BROKEN[2][0](torch.randn(4, 2), torch.tensor([3.0, -2.0]), torch.randn(3, 2))
    with pytest.raises(BrokenLawError, match="agreement"):
        check_operator(op)
