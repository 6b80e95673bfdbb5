"""Conformal intervals: the quantile exactly, the coverage within its binomial error, and shifts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import lowrank_opt as lo
from experiments import rating_intervals
from lowrank_opt.completion import als, bayesian
from lowrank_opt.completion.after.conformal import (
    calibrate,
    conformal,
    conformal_intervals,
    residual_scale,
    row_importance,
)
from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from tests.completion_cases import normal, observe, seeded

M, N = 40, 30


@dataclass
class Known:
    """Predicts what a function says; the smallest thing that has `predict`."""

    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, int] = (M, N)

    def predict(self, rows, cols) -> Tensor:
        return self.function(torch.as_tensor(rows), torch.as_tensor(cols))


ZERO = Known(lambda i, j: torch.zeros(i.shape, dtype=torch.float64))


def everywhere(values: Tensor) -> lo.Observations:
    cells = torch.arange(M * N)
    return lo.Observations(cells // N, cells % N, values, (M, N))


def parts(values: Tensor, calibrated: int, seed: int) -> tuple[lo.Observations, lo.Observations]:
    order = torch.randperm(M * N, generator=seeded(seed))
    entries = everywhere(values)
    return entries.take(order[:calibrated]), entries.take(order[calibrated:])


# The quantile.


@pytest.mark.parametrize("percent", [1, 33, 50, 90, 95, 99])
@pytest.mark.parametrize("n", [1, 2, 9, 10, 19, 99, 100, 101])
def test_the_margin_is_the_right_order_statistic(n: int, percent: int) -> None:
    entries, _ = parts(torch.arange(M * N, dtype=torch.float64), n, seed=0)
    lower, upper = conformal(ZERO, entries).interval(0, 0, coverage=percent / 100)
    number = math.ceil((n + 1) * Fraction(percent, 100))
    expected = sorted([*entries.values.tolist(), math.inf])[number - 1]
    assert (-expected, expected) == (float(lower), float(upper))


@pytest.mark.parametrize("times", [2, 3])
def test_a_weight_counts_as_so_many_entries(times: int) -> None:
    values = torch.arange(1.0, 31.0, dtype=torch.float64)
    weights = torch.where(torch.arange(30) % 3 == 0, float(times), 1.0)
    entries = lo.Observations([0] * 30, range(30), values, (M, N), weights)
    repeated = np.sort(np.repeat(values.numpy(), weights.numpy().astype(int)))
    for percent in (50, 80, 90):
        number = math.ceil((len(repeated) + 1) * Fraction(percent, 100))
        _, upper = conformal(ZERO, entries).interval(0, 0, coverage=percent / 100)
        assert repeated[number - 1] == float(upper)


def test_too_few_entries_give_everything_there_is() -> None:
    entries, _ = parts(normal(M * N, seed=1).clamp(-2, 2), 8, seed=0)
    lower, upper = conformal(ZERO, entries, bounds=(-2.0, 2.0)).interval([0, 1], 3)
    assert ([-2.0, -2.0], [2.0, 2.0]) == (lower.tolist(), upper.tolist())
    lower, upper = conformal(ZERO, entries).interval(0, 0, coverage=8 / 9)
    assert math.isfinite(float(upper - lower))


# Coverage.


@pytest.mark.parametrize(("n", "asked"), [(19, 0.9), (19, 0.8), (60, 0.9)])
def test_coverage_is_exact_for_exchangeable_entries(n: int, asked: float) -> None:
    repeats, covered = 300, []
    for seed in range(repeats):
        calibration, new = parts(normal(M * N, seed=seed), n, seed)
        covered.append(conformal(ZERO, calibration).coverage(new, coverage=asked))
    # The coverage of one calibration is Beta(k, n + 1 - k), up to the finite test set.
    k = math.ceil((n + 1) * Fraction(asked).limit_denominator(100))
    a, b = k, n + 1 - k
    deviation = math.sqrt(a * b / (a + b) ** 2 / (a + b + 1) + 0.25 / (M * N - n))
    assert pytest.approx(k / (n + 1), abs=4 * deviation / math.sqrt(repeats)) == np.mean(covered)


def test_ties_of_discrete_values_never_lower_the_coverage() -> None:
    covered = []
    for seed in range(100):
        ratings = torch.randint(-2, 3, (M * N,), generator=seeded(seed)).double()
        calibration, new = parts(ratings, 300, seed)
        covered.append(conformal(ZERO, calibration).coverage(new, coverage=0.5))
    # |v| is 0, 1, 2 with probabilities 0.2, 0.4, 0.4: the interval [-1, 1] has 0.6.
    assert 0.58 < np.mean(covered) < 0.62


def test_scales_make_widths_adapt_and_keep_the_coverage() -> None:
    spread = lambda i, j: 0.1 + (i % 4).double()  # noqa: E731
    cells = torch.arange(M * N)
    noise = spread(cells // N, cells % N) * normal(M * N, seed=2)
    calibration, new = parts(noise, 500, seed=3)
    intervals = conformal(ZERO, calibration, scale=spread)
    lower, upper = intervals.interval(torch.arange(4), 0)
    assert pytest.approx(31.0) == float((upper - lower)[3] / (upper - lower)[0])
    quiet, loud = (new.take(new.rows % 4 == k) for k in (0, 3))
    equal = conformal(ZERO, calibration)
    assert (1.0, True) == (equal.coverage(quiet), equal.coverage(loud) < 0.85)
    assert 0.85 < intervals.coverage(quiet) < 0.95
    assert 0.85 < intervals.coverage(loud) < 0.95


def test_groups_are_covered_one_by_one() -> None:
    kinds = lambda i, j: j % 3  # noqa: E731
    cells = torch.arange(M * N)
    noise = normal(M * N, seed=4) * torch.tensor([0.2, 1.0, 5.0])[cells % N % 3]
    calibration, new = parts(noise, 600, seed=5)
    intervals = conformal(ZERO, calibration, group=kinds)
    shares = [intervals.coverage(new.take(new.cols % 3 == k)) for k in range(3)]
    assert 0.84 < min(shares) <= max(shares) < 0.96
    only = calibration.take(calibration.cols % 3 != 2)
    _, upper = conformal(ZERO, only, group=kinds).interval(0, [0, 2])
    assert [True, False] == upper.isfinite().tolist()


def test_importance_repairs_a_known_shift() -> None:
    loud, covered = torch.arange(M * N) // N < M // 2, []
    for seed in range(10):
        noise = normal(M * N, seed=seed) * torch.where(loud, 3.0, 1.0)
        entries, chance = everywhere(noise), torch.rand(M * N, generator=seeded(seed))
        # Of loud rows one entry in ten is known, of the others one in two; new ones are loud.
        known = chance < torch.where(loud, 0.1, 0.5)
        calibration, new = entries.take(known), entries.take(~known & loud)
        plain = conformal(ZERO, calibration)
        weighted = conformal(ZERO, calibration, importance=row_importance(calibration, new.rows))
        covered.append((plain.coverage(new), weighted.coverage(new)))
    naive, repaired = np.mean(covered, axis=0)
    assert naive < 0.8
    assert 0.88 < repaired < 0.95


def test_equal_shares_have_equal_importance() -> None:
    entries = everywhere(normal(M * N, seed=1))
    ratios = row_importance(entries, entries.rows)(torch.arange(M), torch.zeros(M).long())
    torch.testing.assert_close(torch.ones(M, dtype=torch.float64), ratios)


# With solvers.


def noisy(share: float, seed: int = 0) -> tuple[lo.Observations, lo.Observations]:
    truth = normal(60, 2, seed=seed) @ normal(2, 50, seed=seed + 1)
    values = truth + 0.3 * normal(60, 50, seed=seed + 2)
    return observe(values, share).split(0.3, generator=seeded(seed))


@pytest.mark.parametrize("scale", [None, "residual"])
def test_calibrate_covers_for_any_solver(scale) -> None:
    covered = []
    for seed in range(8):
        seen, new = noisy(0.8, seed)
        fit = lambda part: als(part, 2, penalty=0.5)  # noqa: E731
        intervals = calibrate(fit, seen, share=0.3, scale=scale, generator=seeded(seed))
        covered.append(intervals.coverage(new))
    # Eight times about 500 calibration and 700 new entries: a deviation of 0.006.
    assert 0.875 < np.mean(covered) < 0.925


def test_calibrate_fits_and_calibrates_on_a_partition() -> None:
    seen, _ = noisy(0.5)
    fitted = []

    def fit(part: lo.Observations) -> Known:
        fitted.append(part)
        return Known(lambda i, j: torch.zeros(i.shape), (60, 50))

    intervals = calibrate(fit, seen, share=0.25, generator=seeded(4))
    (part,) = fitted
    assert len(seen) == len(part) + len(intervals.scores)
    everything = torch.cat((part.values.abs(), intervals.scores)).sort().values
    torch.testing.assert_close(everything, seen.values.abs().sort().values)


def test_posterior_deviations_scale_the_intervals() -> None:
    seen, new = noisy(0.6)
    fit = lambda part: bayesian(part, 2, burn_in=10, samples=20, generator=seeded(1))  # noqa: E731
    intervals = calibrate(fit, seen, share=0.3, scale="posterior", generator=seeded(2))
    lower, upper = intervals.interval(new.rows, new.cols)
    _, std = intervals.result.predict(new.rows, new.cols, return_std=True)
    ratio = (upper - lower) / std
    torch.testing.assert_close(ratio.mean().expand_as(ratio), ratio)
    assert 0.85 < intervals.coverage(new) < 0.95


def test_one_call_gives_the_same_ends() -> None:
    seen, new = noisy(0.5)
    known = Known(lambda i, j: 0.1 * i.double(), (60, 50))
    together = conformal_intervals(known, seen, new.rows, new.cols, coverage=0.8)
    apart = conformal(known, seen).interval(new.rows, new.cols, coverage=0.8)
    assert torch.equal(torch.stack(apart), torch.stack(together))


def test_residual_scale_finds_the_loud_rows() -> None:
    cells = torch.arange(M * N)
    entries = everywhere(normal(M * N, seed=8) * torch.where(cells // N < 5, 10.0, 1.0))
    scale = residual_scale(ZERO, entries)(torch.arange(M), torch.zeros(M).long())
    assert 5 < float(scale[:5].mean() / scale[5:].mean()) < 10


def test_residual_scale_is_positive_after_an_exact_fit() -> None:
    scale = residual_scale(ZERO, everywhere(torch.zeros(M * N)))
    assert bool((scale(torch.arange(M), torch.zeros(M).long()) > 0).all())


def test_predictions_that_are_no_number_make_no_promise() -> None:
    half = Known(lambda i, j: torch.where(i < M // 2, math.nan, 0.0).double())
    calibration, new = parts(normal(M * N, seed=9), 400, seed=1)
    lower, upper = conformal(half, calibration).interval([0, M - 1], 0)
    assert [-math.inf] * 2 + [math.inf] * 2 == [*lower.tolist(), *upper.tolist()]
    assert 1.0 == conformal(half, calibration).coverage(new)


def test_bounds_clip_predictions_and_ends() -> None:
    far = Known(lambda i, j: torch.full(i.shape, 9.0, dtype=torch.float64))
    ratings = torch.randint(1, 6, (M * N,), generator=seeded(1)).double()
    calibration, new = parts(ratings, 400, seed=1)
    intervals = conformal(far, calibration, bounds=(1.0, 5.0))
    lower, upper = intervals.interval(0, 0)
    assert (1.0, 5.0) == (float(lower), float(upper))
    assert 1.0 == intervals.coverage(new)


def test_the_experiment_covers_planted_ratings() -> None:
    ratings = (3 + normal(60, 50, seed=5)).round().clamp(1, 5)
    train, test = observe(ratings, 0.9).split(0.2, generator=seeded(1))
    lines = rating_intervals.lines_of("ball", "planted", train, test)
    assert ["equal", "residual", "adaptive, importance"] == [line[2] for line in lines]
    assert all(85 < float(line[4]) < 98 for line in lines)


# Refusals.


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, math.nan])
def test_refuses_coverages(coverage: float) -> None:
    entries, _ = parts(normal(M * N), 20, seed=0)
    with pytest.raises(OptionError, match=r"coverage must be in \(0, 1\)"):
        conformal(ZERO, entries).interval(0, 0, coverage=coverage)


def test_refuses_another_matrix() -> None:
    with pytest.raises(ShapeError, match="calibration entries must be of the same matrix"):
        conformal(ZERO, lo.Observations([0], [0], [1.0], (2, 2)))


def test_refuses_a_posterior_that_is_not_there() -> None:
    entries, _ = parts(normal(M * N), 20, seed=0)
    with pytest.raises(ShapeError, match="scale='posterior' needs a BayesianResult; got Known"):
        conformal(ZERO, entries, scale="posterior")


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(("name", "message"), [("scale", "scales"), ("importance", "importances")])
def test_refuses_scales_and_importances(name: str, message: str, bad: float) -> None:
    entries, _ = parts(normal(M * N), 20, seed=0)
    with pytest.raises(ObservationError, match=f"{message} must be finite and nonnegative"):
        conformal(ZERO, entries, **{name: lambda i, j: torch.full(i.shape, bad)})


def test_refuses_bounds_that_values_leave() -> None:
    entries, _ = parts(normal(M * N), 20, seed=0)
    with pytest.raises(ObservationError, match="bounds must include all calibration values"):
        conformal(ZERO, entries, bounds=(0.0, 0.5))
