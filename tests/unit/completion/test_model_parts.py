"""The parts of a completion problem, each against a formula: links, losses, objective, problem."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.links import LogisticMean, OrderedMean
from lowrank_opt.completion.model.losses import OrderedProbit, Squared
from lowrank_opt.completion.model.objective import Objective
from lowrank_opt.completion.model.ordinal import thresholds_of
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.observations import Observations

VALUES = [3.0, 1.0, 2.0, 5.0]
WEIGHTS = [1.0, 2.0, 0.0, 1.5]


def observed(values: list[float] = VALUES, weights: list[float] | None = None) -> Observations:
    found, w = (
        None if x is None else torch.tensor(x, dtype=torch.float64) for x in (values, weights)
    )
    return Observations([0, 1, 2, 0], [0, 1, 1, 2], found, weights=w, shape=(3, 3))


@pytest.mark.parametrize(
    ("numbers", "levels", "thresholds"),
    [
        ((1.0, 2.0, 0.0), (1.0, 2.0), (0.0,)),
        ((1.0, 2.0, 4.0, -1.0, 0.5), (1.0, 2.0, 4.0), (-1.0, 0.5)),
    ],
)
def test_levels_and_thresholds_are_read_from_their_numbers(
    numbers: tuple[float, ...], levels: tuple[float, ...], thresholds: tuple[float, ...]
) -> None:
    link = OrderedMean.of(numbers)
    assert (levels, thresholds, numbers) == (link.levels, link.thresholds, link.numbers)


@pytest.mark.parametrize("numbers", [(), (1.0,), (1.0, 2.0), (1.0, 2.0, 3.0, 0.0)])
def test_other_counts_of_numbers_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(TypeError, match="one threshold less than levels"):
        OrderedMean.of(numbers)


def test_means_of_logits_run_from_the_least_value_to_the_greatest() -> None:
    scores = torch.tensor([-1e9, 0.0, math.log(3), 1e9], dtype=torch.float64)
    expected = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(LogisticMean(-1.0, 1.0).mean(scores), expected)


@pytest.mark.parametrize("size", [1e160, -1e160, 1e-160, -1e-160])
def test_values_whose_squares_are_no_numbers_are_refused(size: float) -> None:
    with pytest.raises(ObservationError, match="their squares overflow or vanish"):
        Squared().check(observed([0.0, size, 0.0, 0.0]))


def test_thresholds_start_at_the_quantiles_of_counts_and_half_an_entry() -> None:
    given = observed([1.0, 1.0, 2.0, 3.0], weights=[1.0, 2.0, 1.0, 0.0])
    found = thresholds_of(OrderedProbit().start(given, intercept=False))
    shares = torch.tensor([3.5, 1.5, 0.5], dtype=torch.float64) / 5.5
    expected = torch.special.ndtri(shares.cumsum(0)[:-1])
    torch.testing.assert_close(found.double(), expected)


def test_thresholds_start_at_the_counts_of_all_processes() -> None:
    # This one has no entry of the highest level; another one has two.
    others = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    part = SimpleNamespace(total=lambda counts: counts + others)
    given = SimpleNamespace(values=torch.tensor([1.0, 2.0, 2.0]), weights=None, part=part)
    loss = OrderedProbit((1.0, 2.0, 3.0))
    found = thresholds_of(loss.start(cast("Observations", given), intercept=False))
    shares = torch.tensor([2.5, 2.5, 2.5], dtype=torch.float64) / 7.5
    torch.testing.assert_close(found.double(), torch.special.ndtri(shares.cumsum(0)[:-1]))


def objective(weights: list[float] | None, penalty: float, bias_penalty: float) -> Objective:
    generator = torch.Generator().manual_seed(0)
    chart = lo.Factored((3, 3), 2, dtype=torch.float64, generator=generator)
    given = observed(weights=weights)
    problem = CompletionProblem(given, chart, penalty=penalty, bias_penalty=bias_penalty)
    return Objective(problem, given)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_objective_is_its_formula(weights: list[float] | None) -> None:
    found = objective(weights, penalty=0.7, bias_penalty=0.3)
    bias = AdditiveBias(
        found.mean,
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
        torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64),
    )
    found.move_biases(bias)
    assert 1.0 != found.spread != 2.0
    torch.testing.assert_close(found.bias().rows, bias.rows)
    torch.testing.assert_close(found.bias().cols, bias.cols)
    given, w = observed(), torch.tensor(weights or [1.0] * 4, dtype=torch.float64)
    dense = found.parameterization().to_dense().detach()
    scores = dense + bias.mean + bias.rows[:, None] + bias.cols
    errors = scores[given.rows, given.cols] - given.values
    squares = sum(float(x.detach().square().sum()) for x in found.free)
    of_bias = float(bias.rows.square().sum() + bias.cols.square().sum())
    expected = 0.5 * (float((w * errors.square()).sum()) + 0.7 * squares + 0.3 * of_bias)
    assert float(found.value().detach()) * found.unit == pytest.approx(expected, rel=1e-12)


def test_lines_of_entries_without_weight_are_unseen() -> None:
    rows, cols = objective(WEIGHTS, penalty=0.0, bias_penalty=1.0).seen
    assert [True, True, False] == rows.tolist()
    assert [True, True, True] == cols.tolist()
    rows, _ = objective(None, penalty=0.0, bias_penalty=1.0).seen
    assert rows.all()


def test_biases_have_a_penalty_where_there_are_biases() -> None:
    assert CompletionProblem(observed(), 1, bias=None, bias_penalty=0.3).bias_rate is None
    assert 0.3 == CompletionProblem(observed(), 1, bias_penalty=0.3).bias_rate


@pytest.mark.parametrize("name", ["row_features", "col_features"])
def test_features_have_a_line_for_each_line(name: str) -> None:
    right, wrong = torch.ones(3, 5), torch.ones(5, 3)
    assert getattr(CompletionProblem(observed(), 1, **{name: (right,)}), name) == (right,)
    with pytest.raises(ShapeError, match=f"{name} must have 3 lines"):
        CompletionProblem(observed(), 1, **{name: (right, wrong)})
