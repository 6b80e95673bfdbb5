"""The path, on fits whose held-out error is a known function of the settings."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch

from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
from lowrank_opt.completion.after.path import RegularizationPath, Walk, follow_path
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

ENTRY = Observations([0], [0], torch.zeros(1, dtype=torch.float64), (1, 1))


class Recorded:
    """Predicts the error itself where the value is zero, and remembers its calls."""

    def __init__(self, error: Callable[[Mapping[str, float]], float]) -> None:
        self.error = error
        self.settings: list[dict[str, float]] = []
        self.starts: list[float | None] = []

    def __call__(
        self, _: Observations, setting: Mapping[str, float], start: CompletionResult | None
    ) -> CompletionResult:
        self.settings.append(dict(setting))
        self.starts.append(None if start is None else start.bias.mean)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        bias = AdditiveBias(self.error(setting), zero[0], zero[0])
        operator = LowRankOperator(zero, zero[0], zero)
        return CompletionResult(operator, bias, CompletionStatus.CONVERGED, History())


def search(
    fit: Recorded, setting: dict[str, float], *walks: Walk, exact: float = 0.0
) -> tuple[RegularizationPath, CompletionResult]:
    return follow_path(fit, ENTRY, ENTRY, setting, walks, exact=exact)


def valley(setting: Mapping[str, float]) -> float:
    """Smallest, one, at x = 1/8 and r = 4."""
    return 1 + abs(math.log2(setting["x"]) + 3) + abs(math.log2(setting.get("r", 4) / 4))


def test_walk_stops_behind_the_minimum():
    fit = Recorded(valley)
    path, result = search(fit, {"x": 1.0}, Walk("x", 0.5, steps=20))
    assert [1.0, 0.5, 0.25, 0.125, 0.0625] == [s["x"] for s in fit.settings]
    assert {"x": 0.125} == path.best.setting
    assert 1.0 == result.bias.mean == path.best.validation_rmse


def test_each_fit_starts_from_the_one_before():
    fit = Recorded(valley)
    search(fit, {"x": 1.0}, Walk("x", 0.5, steps=3))
    assert [None, 4.0, 3.0, 2.0] == fit.starts


def test_second_walk_starts_from_the_best_of_the_first():
    fit = Recorded(valley)
    path, _ = search(fit, {"x": 1.0, "r": 1.0}, Walk("x", 0.5, steps=9), Walk("r", 2.0, steps=9))
    assert {"x": 0.125, "r": 4.0} == path.best.setting
    first = fit.settings.index({"x": 0.125, "r": 2.0})
    assert 3.0 == fit.starts[first]


@pytest.mark.parametrize(("patience", "found"), [(1, 4.0), (2, 0.0)])
def test_patience_crosses_a_bump(patience: int, found: float):
    errors = {1: 5.0, 2: 4.0, 4: 4.5, 8: 0.0, 16: 1.0}
    fit = Recorded(lambda s: errors[int(s["x"])])
    path, _ = search(fit, {"x": 1.0}, Walk("x", 2.0, steps=4, patience=patience))
    assert found == path.best.validation_rmse


def test_small_gains_do_not_count():
    fit = Recorded(lambda s: 1 + 0.001 / s["x"])
    search(fit, {"x": 1.0}, Walk("x", 2.0, steps=9, gain=0.01))
    assert 2 == len(fit.settings)


def test_exact_fit_ends_the_search():
    fit = Recorded(valley)
    path, _ = search(fit, {"x": 1.0}, Walk("x", 0.5, steps=9), Walk("x", 2.0), exact=2.0)
    assert [1.0, 0.5, 0.25] == [point.setting["x"] for point in path.points]


def test_error_that_is_not_a_number_is_the_worst():
    fit = Recorded(lambda s: math.nan if s["x"] < 0.2 else s["x"])
    path, _ = search(fit, {"x": 1.0}, Walk("x", 0.5, steps=9))
    assert {"x": 0.25} == path.best.setting
    assert math.isnan(path.points[-1].validation_rmse)


@pytest.mark.parametrize(
    ("walk", "start", "values"),
    [
        (Walk("x", 2.0, steps=3), 1.0, [2.0, 4.0, 8.0]),
        (Walk("x", 0.5, steps=9, bounds=(0.3, 9.0)), 1.0, [0.5, 0.3]),
        (Walk("x", 1.5, steps=9, bounds=(1.0, 10.0), whole=True), 4, [6.0, 9.0, 10.0]),
        (Walk("x", 2.0, steps=9, bounds=(1.0, 4.0)), 4.0, []),
        (Walk("x", 1.5, steps=9, whole=True), 1.0, []),
    ],
)
def test_values_of_a_walk(walk: Walk, start: float, values: list[float]):
    assert values == walk.values(start)


def test_columns_have_one_number_for_each_point():
    path, _ = search(Recorded(valley), {"x": 1.0, "r": 4.0}, Walk("x", 0.5, steps=3))
    columns = path.columns()
    assert ["x", "r", "validation_rmse", "iterations", "seconds"] == list(columns)
    assert {len(path)} == {len(column) for column in columns.values()}
    assert columns["validation_rmse"] == path.to_pandas()["validation_rmse"].tolist()
    assert {} == {k: v for k, v in RegularizationPath(()).columns().items() if v}
