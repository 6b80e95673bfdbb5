"""The verification suite as its users see it."""

import math
from dataclasses import replace
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError, ShapeError
from lowrank_opt.testing import (
    LAWS,
    BrokenLawError,
    Case,
    CheckResult,
    FreeParameters,
    Law,
    Member,
    check_contract,
    check_membership,
    check_never_dense,
    check_parameterization,
    check_section,
    check_zero_start,
    expect,
    feasible_sets,
    free_parameters,
    members,
    observations,
    operators,
    parametrize_with_checks,
    shapes_and_ranks,
)
from lowrank_opt.testing.cases.charts import Chart, chart_of, schatten_norm
from lowrank_opt.testing.cases.oracle import dense, product, singular_values
from lowrank_opt.testing.search.describe import describe
from lowrank_opt.testing.search.search import Scene, drawn
from tests.property.broken import EpsilonStart
from tests.property.claims import UNBOUNDED, keeps


class Grown(lo.HomogeneousBall):
    """Leaves its ball by one percent."""

    def factors(self):
        return 1.01 * super().factors()


class NoAbilities(lo.Parameterization):
    """Only the one method that must be written."""

    def __init__(self, shape, rank):
        super().__init__(shape, rank)
        self.left = torch.nn.Parameter(torch.randn(shape[0], rank))
        self.right = torch.nn.Parameter(torch.randn(shape[1], rank))

    def factors(self):
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), self.right)


def square_only(shape, rank, *, dtype):
    if shape[0] != shape[1]:
        raise ShapeError(f"square matrices only; got {shape}")
    return lo.Factored(shape, rank, dtype=dtype)


def never(shape, rank):
    raise RankError("no rank is right")


BALL = partial(Grown, radius=1.0)


# check_parameterization


def test_sound_class_passes_every_law() -> None:
    verdicts = check_parameterization(
        partial(lo.NBLoRA, radius=0.5), profile="quick", dtype=torch.float32
    )
    assert [law.name for law in LAWS] == [v.check for v in verdicts]
    assert {"passed"} == {v.status for v in verdicts}


def test_first_broken_law_raises() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_parameterization(BALL)
    assert "membership" == caught.value.law


def test_message_names_law_finding_and_runnable_code() -> None:
    with pytest.raises(AssertionError) as caught:
        check_membership(BALL)
    message = str(caught.value)
    assert "the law 'membership' is broken: W leaves SchattenBall(p=1.0, radius=1.0" in message
    assert "make = partial(Grown, radius=1.0)" in message
    case = caught.value.case
    assert f"W = make({case.shape}, {case.rank}, dtype=torch.float64)" in message
    assert "W.left.copy_(torch.tensor([" in message


@pytest.fixture(scope="module")
def failed() -> dict[str, CheckResult]:
    """The verdicts on the laws that a ball grown by one percent is said to break."""
    verdicts = check_parameterization(BALL, profile="quick", on_fail="collect")
    return {v.check: v for v in verdicts if v.status == "failed"}


def test_collect_returns_failures_with_code(failed) -> None:
    assert ["membership"] == list(failed)
    assert (
        "check_parameterization(make, only=['membership'], case=case" in failed["membership"].code
    )
    assert isinstance(failed["membership"].case, Case)


def test_one_cause_has_one_line() -> None:
    verdicts = {
        v.check: v for v in check_parameterization(BALL, profile="quick", on_fail="collect")
    }
    assert "skipped" == verdicts["escape"].status
    assert "not judged while 'membership' is broken" in verdicts["escape"].message


def test_expected_failures_do_not_raise(failed) -> None:
    verdicts = check_parameterization(
        BALL, profile="quick", expected_failures=dict.fromkeys(failed, "known")
    )
    expected = [v for v in verdicts if v.status == "expected_failure"]
    assert list(failed) == [v.check for v in expected]
    assert expected[0].message.startswith("known (W leaves")


def test_abilities_that_are_not_claimed_are_skipped_with_a_reason() -> None:
    verdicts = check_parameterization(NoAbilities, profile="quick")
    skipped = {v.check: v.message for v in verdicts if v.status == "skipped"}
    assert {"zero_start", "section", "completeness", "assign", "escape", "lmo"} == set(skipped)
    assert "no right inverse" in skipped["section"]
    assert "no zero start" in skipped["zero_start"]
    assert "complete is False" in skipped["completeness"]


def test_search_repeats() -> None:
    def found() -> tuple[str, Case | None]:
        with pytest.raises(BrokenLawError) as caught:
            check_membership(BALL)
        return caught.value.found, caught.value.case

    assert found() == found()


def test_failure_that_does_not_repeat_is_reported() -> None:
    calls = []

    def body(subject) -> None:
        calls.append(subject.case)
        expect(len(calls) > 1, "only at first")

    with pytest.raises(BrokenLawError, match=r"only at first \(but not each time"):
        Law("first", "Not only at first.", body)(lo.Factored)


def test_cases_do_not_depend_on_what_is_tried() -> None:
    scene = Scene("free", (1, 7), 12, torch.float64)
    tried = []
    scene.each("law", 3, tried.append)
    assert drawn(scene, "law", 3) == tuple(tried)
    assert drawn(scene, "law", 4) != tuple(tried)


def test_checks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    check_membership(NoAbilities, profile="quick")
    assert torch.equal(expected, torch.randn(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "lazy"}, "profile must be one of .*'quick'.*; got 'lazy'"),
        ({"on_fail": "ignore"}, "on_fail must be 'raise' or 'collect'; got 'ignore'"),
        ({"expected_failures": {"rnak": "typo"}}, r"must name laws, .*; got \['rnak'\]"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(OptionError, match=message):
        check_parameterization(lo.Factored, **options)


# Factories


def test_factory_may_refuse_some_shapes() -> None:
    assert "passed" == check_section(square_only).status


def test_factory_that_refuses_all_shapes_is_an_error() -> None:
    with pytest.raises(ShapeError, match="must accept some of the shapes"):
        check_contract(never)


def test_factory_without_dtype_is_converted() -> None:
    case = Case((2, 2), 1)
    assert torch.float64 == case.build(NoAbilities, dtype=torch.float64).left.dtype


def test_factory_that_fails_breaks_the_law() -> None:
    def failing(shape, rank):
        raise KeyError("no such thing")

    with pytest.raises(BrokenLawError, match="KeyError: 'no such thing'"):
        check_contract(failing)


def test_single_case() -> None:
    result = check_zero_start(lo.Factored, case=Case((3, 2), 1))
    expected = CheckResult("zero_start", "passed", examples=1, seconds=result.seconds)
    assert replace(expected, statement=check_zero_start.statement) == result


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lo.Factored, "Factored"),
        (partial(lo.NBLoRA, radius=3.0, p=1), "NBLoRA(radius=3.0, p=1)"),
        (
            partial(lo.DeLoRA, radius=1.0, column_norms=torch.ones(3)),
            "DeLoRA(radius=1.0, column_norms=tensor(3,))",
        ),
        (square_only, "square_only"),
    ],
)
def test_factories_have_readable_names(make, name) -> None:
    assert name == describe(make)


def test_parameters_of_pytest_have_readable_ids() -> None:
    mark = parametrize_with_checks([partial(lo.NBLoRA, radius=3.0)]).mark
    assert "NBLoRA(radius=3.0)-contract" == mark.args[1][0].id
    assert len(LAWS) == len(mark.args[1])


def test_known_failure_is_as_strict_as_the_options_of_pytest() -> None:
    known = {"membership": "as a test"}
    mark = parametrize_with_checks([BALL], expected_failures=lambda make: known).mark
    marks = {parameter.id: parameter.marks for parameter in mark.args[1]}
    assert {"reason": "as a test"} == marks["Grown(radius=1.0)-membership"][0].kwargs


@parametrize_with_checks(
    [EpsilonStart], profile="quick", expected_failures=lambda make: {"zero_start": "planted"}
)
def test_decorator_runs(make, check) -> None:
    keeps(make, check, UNBOUNDED)


# Strategies and oracle


@hypothesis.given(shapes_and_ranks(max_side=5, max_rank=3))
def test_ranks_fit_shapes(drawn) -> None:
    (m, n), rank = drawn
    assert 1 <= rank <= min(m, n, 3)
    assert max(m, n) <= 5


@hypothesis.given(free_parameters(dtype=torch.float32))
def test_free_parameters_are_finite_in_their_dtype(values) -> None:
    assert torch.isfinite(values.tensor((3, 2), dtype=torch.float32)).all()


@hypothesis.given(operators(dtype=torch.float32))
def test_operators_are_finite(op) -> None:
    assert all(torch.isfinite(x).all() for x in op)
    assert torch.float32 == op.dtype


@hypothesis.given(st.data())
def test_members_are_members(data) -> None:
    feasible_set = data.draw(feasible_sets())
    shape, _ = data.draw(shapes_and_ranks())
    op = data.draw(members(feasible_set, shape))
    chart = chart_of(feasible_set)
    assert shape == op.shape
    assert chart.excess(dense(op)) <= chart.tolerance(dense(op), op.dtype, feasible_set.rank)


@hypothesis.given(observations())
def test_observations_are_valid(drawn) -> None:
    assert 1 <= len(drawn) <= drawn.shape[0] * drawn.shape[1]


@pytest.mark.parametrize("size", [1e-160, 1e-30, 1.0, 1e150])
def test_oracle_keeps_exponents_apart(size) -> None:
    op = lo.LowRankOperator(
        *(torch.full(s, size, dtype=torch.float64) for s in ((2, 1), (1,), (2, 1)))
    )
    matrix = product(op)
    expected = 3 * math.log2(size) + 1
    top = math.log2(singular_values(matrix.mantissa)[0]) + matrix.exponent
    assert expected == pytest.approx(top, abs=1e-9)


def test_schatten_norm_of_the_oracle() -> None:
    assert 5.0 == schatten_norm(np.array([4.0, 3.0]), 2)
    assert 7.0 == schatten_norm(np.array([4.0, 3.0]), 1)
    assert 4.0 == schatten_norm(np.array([4.0, 3.0]), math.inf)


def nested_chart() -> tuple[Chart, lo.NestedSVD]:
    inner = lo.Weighted(
        lo.HomogeneousBall((2, 2), 1, radius=1.0, dtype=torch.float64), torch.tensor([2.0, 1.0])
    )
    outer = lo.NestedSVD(torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)), inner)
    return chart_of(outer.feasible_set), outer


def test_chart_measures_norm_rank_and_spaces_apart() -> None:
    chart, _ = nested_chart()
    assert 0.0 == chart.excess(np.diag([2.0, 0.0, 0.0]))
    assert 1.0 == pytest.approx(chart.spectral_excess(np.diag([4.0, 0.0, 0.0])))
    assert 0.5 == pytest.approx(chart.outside(np.diag([0.0, 0.0, 0.5])))


def test_member_is_on_the_boundary() -> None:
    _, outer = nested_chart()
    op = Member("first").build(outer.feasible_set, (3, 3))
    assert 1.0 == pytest.approx(chart_of(outer.feasible_set).pull(dense(op)).__abs__().max(), abs=1)
    assert 0.0 == pytest.approx(chart_of(outer.feasible_set).excess(dense(op)), abs=1e-14)


def test_free_parameters_fill_in_turn() -> None:
    module = lo.Factored((2, 3), 1, dtype=torch.float64)
    FreeParameters("constant", (2.0, 1e-30)).fill_(module)
    assert [2.0, 1e-30] == [float(p.detach().max()) for p in module.parameters()]


def test_never_dense_asks_for_no_allocation() -> None:
    assert "passed" == check_never_dense(lo.Factored, profile="quick").status
