"""Displays: what is drawn is what was computed, and the notebook's HTML stands alone."""

import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import (
    AdditiveBias,
    CompletionResult,
    CompletionStatus,
    History,
    Iteration,
)
from lowrank_opt.completion.after.path import PathPoint, RegularizationPath
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.plots import ConvergenceDisplay, PathDisplay, ResidualDisplay, SpectrumDisplay
from tests.preloaded import run_script


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def diagonal(*values: float) -> lo.LowRankOperator:
    r = len(values)
    return lo.LowRankOperator(torch.eye(6, r), torch.tensor(values), torch.eye(5, r))


def make(*, validation: bool = True, points: int = 4, **ids: object) -> CompletionResult:
    history = History()
    for k in range(points):
        rmse = abs(k - 2) + 0.5 if validation else math.nan
        history.append(Iteration(100.0 * 2.0**-k, 1.0, rmse, 0.5 * k))
    bias = AdditiveBias(3.0, torch.zeros(6), torch.zeros(5))
    return CompletionResult(
        diagonal(4.0, 2.0, 1.0), bias, CompletionStatus.STOPPED_BY_VALIDATION, history, **ids
    )


class Fitted:
    """What an estimator looks like after fit."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


def path(*settings: tuple[float, float, float]) -> RegularizationPath:
    return RegularizationPath(
        tuple(PathPoint({"penalty": p, "rank": r}, e, 3, 0.1) for p, r, e in settings)
    )


PATH = path((1.0, 4, 0.9), (0.1, 4, 0.8), (0.01, 4, 0.85), (0.1, 8, 0.7), (0.01, 8, math.nan))


def test_spectrum_draws_the_singular_values():
    ax = plt.subplots()[1]
    display = SpectrumDisplay.from_result(make()).plot(ax)
    x, y = display.ax_.lines[0].get_data()
    assert ([1, 2, 3], [4.0, 2.0, 1.0]) == (list(x), pytest.approx(list(y)))
    assert (ax, ax.figure, "linear") == (display.ax_, display.figure_, ax.get_yscale())
    assert "nuclear norm 7" in ax.texts[0].get_text()


def test_wide_spectrum_is_logarithmic():
    assert "log" == SpectrumDisplay.from_result(diagonal(1.0, 1e-3)).plot().ax_.get_yscale()


@pytest.mark.parametrize(
    ("values", "expected"), [((2.0, 2.0, 2.0), 3.0), ((5.0,), 1.0), ((0.0, 0.0), 0.0)]
)
def test_effective_rank(values: tuple[float, ...], expected: float):
    display = SpectrumDisplay.from_result(diagonal(*values)).plot()
    assert expected == pytest.approx(display.effective_rank)


def test_convergence_draws_the_history():
    display = ConvergenceDisplay.from_estimator(Fitted(result_=make())).plot()
    assert [100.0, 50.0, 25.0, 12.5] == list(display.ax_.lines[0].get_ydata())
    curve, best = display.validation_ax_.lines
    assert [2.5, 1.5, 0.5, 1.5] == list(curve.get_ydata())
    assert ([2], [0.5]) == tuple(map(list, best.get_data()))
    assert "Stopped early" == display.ax_.get_title()


def test_convergence_against_seconds_without_validation():
    display = ConvergenceDisplay.from_result(make(validation=False, points=9)).plot(x="seconds")
    assert [0.5 * k for k in range(9)] == list(display.ax_.lines[0].get_xdata())
    assert display.validation_ax_ is None
    assert ("log", "seconds") == (display.ax_.get_yscale(), display.ax_.get_xlabel())


@pytest.mark.parametrize("points", [0, 1])
def test_short_histories_are_drawn(points: int):
    ConvergenceDisplay.from_result(make(points=points)).plot().figure_.canvas.draw()
    assert "<svg" in make(points=points)._repr_html_()


@pytest.mark.parametrize("kind", ["residual_vs_predicted", "actual_vs_predicted"])
def test_residuals_of_entries(kind: str):
    observed = lo.Observations([0, 1, 5], [0, 1, 4], [6.0, 5.5, 3.0], (6, 5))
    display = ResidualDisplay.from_result(make(), observed).plot(kind=kind)
    x, y = display.ax_.lines[0].get_data()
    assert [7.0, 5.0, 3.0] == list(x)
    assert [-1.0, 0.5, 0.0] == list(display.residuals)
    assert list(y) == list(display.residuals if kind[0] == "r" else display.observed)
    assert math.sqrt(1.25 / 3) == pytest.approx(display.rmse)


def test_many_residuals_are_counted():
    display = ResidualDisplay(np.zeros(3000), np.linspace(0, 1, 3000)).plot()
    assert 3000 == display.ax_.collections[0].get_array().sum()


def test_histogram_counts_all():
    display = ResidualDisplay(np.arange(50.0), np.zeros(50)).plot(kind="histogram")
    assert 50 == sum(bar.get_height() for bar in display.ax_.patches)


def test_path_draws_a_line_for_each_rank():
    display = PathDisplay.from_estimator(Fitted(path_=PATH)).plot()
    lines = {line.get_label(): line.get_data() for line in display.ax_.lines[:2]}
    assert ["rank = 4", "rank = 8"] == list(lines)
    assert [[0.01, 0.1, 1.0], [0.85, 0.8, 0.9]] == [list(x) for x in lines["rank = 4"]]
    assert [[0.1], [0.7]] == [list(x) for x in lines["rank = 8"]]
    assert "best: 0.7 at penalty = 0.1, rank = 8" == display.ax_.get_title()
    assert ("log", "penalty") == (display.ax_.get_xscale(), display.ax_.get_xlabel())


def test_path_of_one_point_and_of_another_setting():
    PathDisplay.from_result(path((1.0, 4, 0.9))).plot().figure_.canvas.draw()
    display = PathDisplay.from_result(PATH).plot(x="rank")
    assert ("linear", "rank") == (display.ax_.get_xscale(), display.ax_.get_xlabel())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConvergenceDisplay.from_result(make()).plot(x="hours"), OptionError, "x must be"),
        (lambda: ResidualDisplay([1.0], [1.0]).plot(kind="pie"), OptionError, "kind must be"),
        (lambda: ResidualDisplay([1.0], [1.0, 2.0]), ShapeError, "one length; got shapes"),
        (lambda: PathDisplay(path()), OptionError, "must have a point"),
        (lambda: PathDisplay(PATH).plot(x="radius"), OptionError, r"\['penalty', 'rank'\]"),
        (lambda: SpectrumDisplay.from_estimator(Fitted()), OptionError, "without: call fit first"),
    ],
)
def test_refusals(call: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def test_import_leaves_matplotlib_alone(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("import sys, lowrank_opt.plots; print('matplotlib' in sys.modules)")
    assert "False\n" == run_script(script, folder=tmp_path).stdout


class Tags(HTMLParser):
    """Collects tags, their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names, self.attributes, self.text = set[str](), set[str](), ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data + "|"


def test_html_is_well_formed_and_needs_nothing_else():
    html = make(row_ids=["<b>", *"abcde"])._repr_html_()
    ElementTree.fromstring(html)
    tags = Tags(html)
    assert not {"script", "link", "img", "iframe", "style"} & tags.names
    assert not {"src", "href", "onload"} & tags.attributes
    assert "6 × 5, float32|" in tags.text
    assert "Stopped early: the validation error no longer improved.|" in tags.text
    assert "validation RMSE|0.5000|" in tags.text
    assert "ids|of rows|" in tags.text


def test_long_history_makes_a_short_page():
    assert len(make(points=5000)._repr_html_()) < 12000


def test_html_of_nothing():
    result = make(points=0)
    zero = CompletionResult(diagonal(0.0), result.bias, result.status, History())
    assert "<svg" not in zero._repr_html_()
