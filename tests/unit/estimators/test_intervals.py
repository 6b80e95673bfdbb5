"""Intervals by what is known of an entry: coverage within each group, cold ones included."""

import numpy as np
import pytest

from lowrank_opt.estimators import MatrixCompletion
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
