"""Intervals by what is known of an entry: coverage within each group, cold ones included."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import interval_coverage
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.estimators.choice.draws import draws_of
from lowrank_opt.estimators.choice.intervals import LEVELS, Intervals, Level

SHAPE = (400, 300)


def uneven(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries of a biased matrix whose rows and columns have 2 to 120 entries."""
    rng = np.random.default_rng(seed)
    m, n = SHAPE
    chance = np.outer(rng.beta(1, 2, m) + 0.02, rng.beta(1, 2, n) + 0.02)
    pairs = np.argwhere(rng.random(SHAPE) < chance)
    W = rng.normal(size=m)[:, None] + rng.normal(size=n)
    W += 0.7 * rng.normal(size=(m, 2)) @ rng.normal(size=(2, n))
    return pairs, W[pairs[:, 0], pairs[:, 1]] + 0.5 * rng.normal(size=len(pairs))


@pytest.fixture(scope="module")
def covered() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether test entries are inside 90 % intervals, and their fitted counts."""
    parts = []
    for seed in range(3):
        pairs, y = uneven(seed)
        rng = np.random.default_rng(seed)
        cold = [rng.random(size) < 0.15 for size in SHAPE]
        seen = ~(cold[0][pairs[:, 0]] | cold[1][pairs[:, 1]] | (rng.random(len(y)) < 0.15))
        model = MatrixCompletion(random_state=0).fit(pairs[seen], y[seen])
        low, high = model.predict_interval(pairs[~seen], coverage=0.9)
        counts = (np.bincount(pairs[seen, k], minlength=SHAPE[k])[pairs[~seen, k]] for k in (0, 1))
        parts.append(((low <= y[~seen]) & (y[~seen] <= high), *counts))
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


GROUPS = {
    "short rows": lambda a, b: (a > 0) & (a < 15) & (b > 0),
    "middling rows": lambda a, b: (a >= 15) & (a < 40) & (b > 0),
    "long rows": lambda a, b: (a >= 40) & (b > 0),
    "short columns": lambda a, b: (b > 0) & (b < 20) & (a > 0),
    "long columns": lambda a, b: (b >= 40) & (a > 0),
    "cold rows": lambda a, b: (a == 0) & (b > 0),
    "cold columns": lambda a, b: (a > 0) & (b == 0),
}


@pytest.mark.parametrize(
    "options",
    [{"rank": 3}, {"solver": "als", "rank": 12, "penalty": 0.3, "bias_penalty": 1.0}],
    ids=["rank alone", "follows the noise"],
)
def test_fits_with_all_settings_given_have_intervals(options: dict, tmp_path: Path):
    """Errors of entries that were fitted would be too small, most of all where noise is fitted."""
    pairs, y = uneven(0)
    rng = np.random.default_rng(0)
    cold = pairs[:, 0] < 60
    seen = ~(cold | (rng.random(len(y)) < 0.15))
    model = MatrixCompletion(random_state=0, **options).fit(pairs[seen], y[seen])
    before = model.predict(pairs)
    model.save(tmp_path / "before")
    low, high = pickle.loads(pickle.dumps(model)).predict_interval(pairs)
    inside = (low <= y) & (y <= high)
    for here in (cold, ~cold & ~seen):
        assert 0.85 < inside[here].mean() < 0.95
    np.testing.assert_array_equal(np.stack(model.predict_interval(pairs)), np.stack((low, high)))
    np.testing.assert_array_equal(before, model.predict(pairs))
    again = MatrixCompletion.load(tmp_path / "before").predict_interval(pairs)
    np.testing.assert_array_equal(np.stack((low, high)), np.stack(again))


@pytest.mark.parametrize("group", GROUPS)
def test_coverage_within_each_group(covered: tuple, group: str):
    inside, rows, cols = covered
    here = GROUPS[group](rows, cols)
    assert here.sum() > 300
    # Entries of one row share its errors: the share has a deviation of about 0.02.
    assert 0.85 < inside[here].mean() < 0.95


def test_errors_of_known_pairs_do_not_cover_cold_rows():
    """The planted defect: one set of errors for whatever is known."""
    pairs, y = uneven(0)
    cold = pairs[:, 0] < 60
    model = MatrixCompletion(random_state=0).fit(pairs[~cold], y[~cold])
    errors = np.abs(model.predict(pairs[cold]) - y[cold])
    cols = np.bincount(pairs[~cold, 1], minlength=SHAPE[1])[pairs[cold, 1]]
    pooled = model._intervals.levels[True, True].margins(np.full(len(cols), 30), cols, 0.9)
    right = model._intervals.margins(np.zeros(len(cols), int), cols, 0.9)
    assert (errors <= pooled).mean() < 0.8 < 0.85 < (errors <= right).mean()


def test_levels_are_conformal_quantiles():
    """With one group, the margin is the order statistic of split conformal prediction."""
    errors, counts = np.arange(1.0, 100.0), np.full(99, 7)
    level = Level.of(errors, counts, counts, (True, True))
    asked = np.array([7])
    assert 90.0 == pytest.approx(level.margins(asked, asked, 0.9)[0])
    assert 99.0 == pytest.approx(level.margins(asked, asked, 0.99)[0])
    assert np.isinf(level.margins(asked, asked, 0.995)[0])


def test_scales_fall_with_what_is_known():
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(1, 100, (2, 4000))
    errors = np.abs(rng.normal(size=4000)) * (1 + 4 / np.sqrt(1 + rows))
    level = Level.of(errors, rows, cols, (True, True))
    few, many = level.margins(np.array([1, 90]), np.array([50, 50]), 0.9)
    assert few > 1.5 * many


@pytest.mark.parametrize("count", [0, 1, 9, 500])
def test_few_errors_give_wide_intervals(count: int):
    zero = np.zeros(count)
    found = Intervals.of(dict.fromkeys(LEVELS, zero), zero.astype(int) + 1, zero.astype(int) + 1)
    margins = found.margins(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), 0.9)
    assert (np.isinf(margins) == (count < 9)).all()


EVERY = (np.arange(2520) + 0.5) / 2520


def covered_share(scores: list[float], coverage: float, draws: np.ndarray) -> float:
    """The mean chance that a score is within the margin that all others give."""
    chances = []
    for k, score in enumerate(scores):
        others = np.array(scores[:k] + scores[k + 1 :])
        counts = np.full(len(others), 5)
        level = Level.of(others, counts, counts, (False, False))
        asked = np.full(len(draws), 5)
        # The scale of one group is common to all: it is taken out again.
        margins = level.margins(asked, asked, coverage, draws=draws)
        chances.append(np.mean(score <= margins))
    return float(np.mean(chances))


@given(
    scores=st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.01, 1.5, 4.0]), min_size=3, max_size=9),
    k=st.integers(1, 8),
)
def test_smoothed_coverage_of_any_scores(scores: list[float], k: int):
    """Every score is new once: whatever the ties, k of n + 1 are covered, or one more."""
    k = min(k, len(scores) - 1)
    found = covered_share(scores, k / len(scores), EVERY)
    assert k / len(scores) - 1e-9 <= found <= (k + 1) / len(scores) + 1e-9


def test_without_draws_ties_cover_too_much():
    """The planted defect: closed intervals between whole stars go in steps."""
    scores = [0.5] * 5 + [1.5] * 4
    assert 2 / 3 == pytest.approx(covered_share(scores, 2 / 3, EVERY))
    assert 1.0 == covered_share(scores, 2 / 3, np.zeros(1))


def test_stars_of_which_nothing_is_known():
    """Three standard deviations: 650 errors calibrate, 3000 entries are asked."""
    rng = np.random.default_rng(0)
    pairs = np.argwhere(rng.random((100, 100)) < 0.65)
    y = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], p=[0.06, 0.11, 0.27, 0.34, 0.22], size=len(pairs))
    model = MatrixCompletion(random_state=0).fit(pairs, y)
    new = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], p=[0.06, 0.11, 0.27, 0.34, 0.22], size=3000)
    asked = np.stack((1000 + np.arange(3000), np.full(3000, 1000)), axis=1)
    low, high = model.predict_interval(asked, coverage=0.9)
    assert abs(np.mean((low <= new) & (new <= high)) - 0.9) < 0.04
    assert 2 == len(set(low.tolist()))


def test_draws_belong_to_pairs():
    ids = np.arange(100)
    rows, cols = np.repeat(ids, 100), np.tile(ids, 100)
    draws = draws_of(rows, cols)
    assert draws[1234] == draws_of(rows[1234:1235], cols[1234:1235])[0]
    objects = rows.astype(object)
    objects[0] = "text"
    np.testing.assert_array_equal(draws[100:], draws_of(objects, cols)[100:])
    # The 1 - 1e-6 quantile of Kolmogorov's statistic.
    steps = np.abs(np.sort(draws) - (np.arange(len(draws)) + 0.5) / len(draws))
    assert steps.max() * 100 < 2.7


@pytest.mark.parametrize("solver", ["auto", "bayesian"])
def test_deviations_and_intervals_of_a_posterior(solver: str):
    pairs, y = uneven(1)
    new = np.random.default_rng(1).random(len(y)) < 0.2
    model = MatrixCompletion(solver=solver, random_state=0, max_iterations=40)
    model.fit(pairs[~new], y[~new])
    mean, std, known = model.predict(pairs[new], return_std=True, return_known=True)
    here = known == "pair"
    z = ((y[new] - mean) / std)[here]
    assert 0.85 < np.sqrt(np.mean(z**2)) < 1.15
    low, high = model.predict_interval(pairs[new], coverage=0.9)
    assert 0.87 < np.mean((low <= y[new]) & (y[new] <= high)) < 0.93
    cold = model.predict([(9999, 9999)], return_std=True)[1][0]
    assert cold == pytest.approx(y.std(), rel=0.15)


def test_the_experiment_groups_by_what_is_known(monkeypatch: pytest.MonkeyPatch):
    pairs, y = uneven(2)
    table = interval_coverage.Table(*pairs.T, y)
    monkeypatch.setattr(interval_coverage, "table_of", lambda *_: table)
    monkeypatch.setitem(interval_coverage.DATA, "ml-100k", lambda: None)
    found = interval_coverage.covered("ml-100k", "auto", 0)
    line = interval_coverage.line_of("ml-100k", "auto", [found, found])
    assert [f"{100 * hits / count:.1f}" for hits, count in found] == line[1:]
    assert found[0][1] == sum(count for _, count in found[1:])
    fitted, asked = interval_coverage.split(table, np.random.default_rng(0))
    group = interval_coverage.group_of(fitted, asked)
    new = [~np.isin(getattr(asked, x), getattr(fitted, x)) for x in ("rows", "cols")]
    assert (group == np.where(new[0] & new[1], 7, np.where(new[0], 5, 6)))[new[0] | new[1]].all()
    assert {1, 2, 3, 4} == set(group[~(new[0] | new[1])].tolist())
