"""Drifting biases against a dense ridge regression, planted drifts, and the matrix of periods."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import als, bayesian
from lowrank_opt.completion.after.drift import deviation, fit_drifting_bias, fit_with_drift
from lowrank_opt.completion.after.time_bins import TimeBins
from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from tests.completion_cases import factored, normal, observe, seeded

M, N = 12, 9


def entries(share: float = 0.6, *, weights: bool = False) -> tuple[lo.Observations, torch.Tensor]:
    seen = observe(normal(M, N, seed=1), share, weights=weights)
    return seen, 100 * torch.rand(len(seen), generator=seeded(2), dtype=torch.float64) - 30


def one_hot(index: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size)[index]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("day", [None, 20.0])
@pytest.mark.parametrize("bins", [1, 3])
def test_biases_are_the_ridge_regression(bins: int, day: float | None, weights: bool) -> None:
    seen, times = entries(weights=weights)
    options = {"penalty": 2.0, "drift_penalty": 0.7, "day_penalty": 0.3}
    bias = fit_drifting_bias(seen, times, bins=bins, day=day, **options)
    i, j, t = seen.rows.numpy(), seen.cols.numpy(), times.numpy()
    v, w = seen.values.numpy(), np.ones(len(seen)) if seen.weights is None else seen.weights.numpy()
    centres = np.array([t[i == k].mean() if (i == k).any() else 0.0 for k in range(M)])
    moved = np.sign(t - centres[i]) * np.abs(t - centres[i]) ** 0.4
    moved /= np.sqrt(np.mean(moved**2))
    period = np.searchsorted(np.sort(t)[np.arange(1, bins) * len(t) // bins], t, side="right")
    design = [one_hot(i, M), one_hot(j, N), one_hot(i, M) * moved[:, None]]
    design += [one_hot(j * bins + period, N * bins)]
    sizes, amounts = [M, N, M, N * bins], [2.0, 2.0, 0.7, 0.7]
    if day is not None:
        pairs = np.unique(np.stack((i, np.floor(t / day))), axis=1, return_inverse=True)
        design += [one_hot(pairs[1].ravel(), pairs[0].shape[1])]
        sizes, amounts = [*sizes, pairs[0].shape[1]], [*amounts, 0.3]
    Z, mean = np.hstack(design), np.average(v, weights=w)
    normal_matrix = Z.T @ (w[:, None] * Z) + np.diag(np.repeat(amounts, sizes))
    expected = mean + Z @ np.linalg.solve(normal_matrix, Z.T @ (w * (v - mean)))
    np.testing.assert_allclose(expected, bias.predict(seen.rows, seen.cols, times), atol=1e-9)


def test_static_biases_are_those_of_the_additive_model() -> None:
    seen, times = entries()
    bias = fit_drifting_bias(seen, times, penalty=2.0, drift_penalty=1e12)
    static = lo.completion.model.bias.fit_additive_bias(seen, penalty=2.0)
    expected = static.predict(seen.rows, seen.cols)
    torch.testing.assert_close(
        expected, bias.predict(seen.rows, seen.cols, times), atol=1e-8, rtol=0
    )


def test_time_may_be_in_any_unit() -> None:
    seen, times = entries()
    found = [
        fit_drifting_bias(seen, times * unit, bins=3, day=20.0 * unit).predict(
            seen.rows, seen.cols, times * unit
        )
        for unit in (1.0, 2.0**40, 2.0**-40)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("planted", ["slope", "period", "day"])
def test_a_planted_drift_is_found_on_new_entries(planted: str) -> None:
    generator = seeded(3)
    cells = torch.arange(40 * 50)
    rows, cols = cells // 50, cells % 50
    times = 100 * torch.rand(2000, generator=generator, dtype=torch.float64)
    signs = torch.randn(40, generator=generator, dtype=torch.float64)
    drift = {
        "slope": signs[rows] * deviation(times, torch.full_like(times, 50.0)) / 3,
        "period": signs[cols % 40] * (times > 50),
        "day": torch.randn(40, 10, generator=generator).double()[rows, (times / 10).long()],
    }[planted]
    values = 3 + drift + 0.1 * torch.randn(2000, generator=generator)
    known = torch.rand(2000, generator=generator) < 0.7
    seen = lo.Observations(rows, cols, values, (40, 50)).take(known)
    options = {"slope": {}, "period": {"bins": 2}, "day": {"day": 10.0}}[planted]
    bias = fit_drifting_bias(seen, times[known], drift_penalty=1.0, day_penalty=0.1, **options)
    new = ~known
    errors = bias.predict(rows[new], cols[new], times[new]) - values[new]
    assert errors.square().mean() < 0.15 * drift[new].var()


def test_what_was_never_seen_adds_nothing() -> None:
    seen = lo.Observations([0, 0, 1], [0, 1, 0], [1.0, 2.0, 6.0], (3, 3))
    times = torch.tensor([0.0, 5.0, 9.0])
    bias = fit_drifting_bias(seen, times, bins=2, day=1.0)
    late = torch.tensor([1e9])
    assert pytest.approx(3.0) == float(bias.predict(torch.tensor([2]), torch.tensor([2]), late))
    same = bias.predict(torch.tensor([1, 1]), torch.tensor([2, 2]), torch.tensor([1e9, 2e9]))
    assert same[0] == same[1]


@pytest.mark.parametrize("times", [[5.0], [-1e300], [0.0]])
def test_one_entry(times: list[float]) -> None:
    seen = lo.Observations([0], [0], [4.0], (1, 1))
    t = torch.tensor(times, dtype=torch.float64)
    predicted = fit_drifting_bias(seen, t, bins=4, day=1.0).predict(seen.rows, seen.cols, t)
    assert pytest.approx(4.0) == float(predicted)


def test_equal_times_are_one_period() -> None:
    seen, _ = entries()
    bias = fit_drifting_bias(seen, torch.full((len(seen),), 7.0), bins=5)
    assert 1 == len(bias.bins)
    assert bool(torch.isfinite(bias.predict(seen.rows, seen.cols, 7.0 + seen.rows)).all())


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_bins_have_equal_counts(count: int) -> None:
    times = normal(700, seed=4)
    bins = TimeBins.of_equal_counts(times, count)
    found = torch.bincount(bins.bin(times), minlength=count)
    assert (count, 700) == (len(bins), int(found.sum()))
    assert int(found.max() - found.min()) <= 1


# Periods as columns.


def test_periods_are_columns_and_features_tie_them() -> None:
    seen, times = entries()
    bins = TimeBins.of_equal_counts(times, 3)
    wide = bins.expand(seen, times)
    assert (M, 3 * N) == wide.shape
    features = bins.features(N)
    assert (3 * N, N) == features.shape
    owners = features.tocoo()
    np.testing.assert_array_equal(np.arange(3 * N) // 3, owners.col[np.argsort(owners.row)])
    assert torch.equal(wide.cols // 3, seen.cols)
    assert torch.equal(wide.cols % 3, bins.bin(times))


def test_features_let_factors_drift_in_complete_and_bayesian() -> None:
    seen, times = entries(0.9)
    bins = TimeBins.of_equal_counts(times, 2)
    wide = bins.expand(seen, times)
    shared = lo.Inductive(factored((M, N), 2), col_features=bins.features(N))
    result = lo.complete(wide, shared, penalty=1.0, bias=None)
    # The columns are those of the features alone: the periods of a column are equal.
    torch.testing.assert_close(*(result.to_dense()[:, k::2] for k in (0, 1)))
    posterior = bayesian(
        wide, 2, col_features=[bins.features(N)], burn_in=2, samples=3, generator=seeded(1)
    )
    assert wide.shape == posterior.shape


def test_with_drift_adds_the_two_parts() -> None:
    seen, times = entries(0.9)
    model = fit_with_drift(lambda left: als(left, 2, penalty=1.0), seen, times, day=10.0)
    left = model.bias.residual(seen, times)
    biases = model.bias.predict(seen.rows, seen.cols, times)
    torch.testing.assert_close(seen.values.double(), left.values.double() + biases)
    expected = biases + model.result.predict(seen.rows, seen.cols)
    torch.testing.assert_close(expected, model.predict(seen.rows, seen.cols, times))
    clipped = model.predict(seen.rows, seen.cols, times, clip=(-0.1, 0.1))
    assert float(clipped.abs().max()) <= 0.1


# Refusals.


def test_refuses_times_of_other_entries() -> None:
    seen, _ = entries()
    with pytest.raises(ShapeError, match="there must be a time for each of"):
        fit_drifting_bias(seen, torch.zeros(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_times_that_are_no_numbers(bad: float) -> None:
    seen, times = entries()
    times[3] = bad
    with pytest.raises(ObservationError, match="times must be finite"):
        fit_drifting_bias(seen, times)


@pytest.mark.parametrize("name", ["day", "penalty", "drift_penalty", "day_penalty"])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_refuses_options(name: str, bad: float) -> None:
    seen, times = entries()
    with pytest.raises(OptionError, match=f"{name} must be positive and finite"):
        fit_drifting_bias(seen, times, **{name: bad})


def test_refuses_no_bins() -> None:
    with pytest.raises(OptionError, match="bins must be a positive integer"):
        TimeBins.of_equal_counts(torch.zeros(3), 0)
