"""Random splits are partitions that a seed repeats; metrics equal their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_opt.errors import ObservationError, ShapeError
from lowrank_opt.metrics import mae, rmse
from lowrank_opt.observations import Observations
from problems.splits import k_folds, random_split, validation_split
from tests.builders import seeded


def numbered(count: int) -> Observations:
    """Entries of one column whose value is their row."""
    rows = torch.arange(count)
    return Observations(rows, torch.zeros_like(rows), rows.double(), shape=(count, 1))


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99))
def test_random_split_is_a_partition_of_the_right_size(count: int, fraction: float) -> None:
    train, test = random_split(numbered(count), test_fraction=fraction, generator=seeded())
    assert abs(len(test) - fraction * count) <= 1.0
    assert min(len(train), len(test)) >= 1
    assert list(range(count)) == sorted(train.values.tolist() + test.values.tolist())


def test_random_split_keeps_shape_dtype_and_order() -> None:
    train, test = random_split(numbered(50), generator=seeded())
    assert (50, 1) == train.shape == test.shape
    assert torch.float64 == train.values.dtype == test.values.dtype
    assert sorted(train.values.tolist()) == train.values.tolist()


def test_random_split_is_repeated_by_its_seed() -> None:
    first, again, other = (
        random_split(numbered(50), generator=seeded(seed))[1].rows.tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_random_split_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    random_split(numbered(50), generator=seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_random_split_holds_out_each_entry_equally_often() -> None:
    generator, held = seeded(), np.zeros(10)
    for _ in range(2000):
        _, test = random_split(numbered(10), test_fraction=0.3, generator=generator)
        held[test.rows.numpy()] += 1
    # Binomial(2000, 0.3) has standard deviation 20.5; five of them.
    assert np.abs(held - 600).max() < 103


def test_validation_split_is_part_of_the_training_fold() -> None:
    train, _ = random_split(numbered(100), test_fraction=0.2, generator=seeded())
    fitted, validation = validation_split(train, generator=seeded(1))
    assert (72, 8) == (len(fitted), len(validation))
    assert sorted(train.rows.tolist()) == sorted(fitted.rows.tolist() + validation.rows.tolist())


@given(count=st.integers(5, 40), folds=st.integers(2, 5))
def test_k_folds_test_each_entry_once(count: int, folds: int) -> None:
    parts = k_folds(numbered(count), folds=folds, generator=seeded())
    sizes = [len(test) for _, test in parts]
    assert folds == len(parts)
    assert max(sizes) - min(sizes) <= 1
    assert list(range(count)) == sorted(v for _, test in parts for v in test.rows.tolist())
    assert {count} == {len(train) + len(test) for train, test in parts}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_fraction_outside_its_range_is_an_error(fraction: float) -> None:
    with pytest.raises(ObservationError, match=r"test_fraction must be between 0 and 1; got"):
        random_split(numbered(10), test_fraction=fraction)


def test_single_entry_cannot_be_split() -> None:
    with pytest.raises(ObservationError, match="a split needs at least 2 entries; got 1"):
        random_split(numbered(1))


@pytest.mark.parametrize(("folds", "message"), [(1, "at least 2; got 1"), (6, "6 entries; got 5")])
def test_impossible_folds_are_an_error(folds: int, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        k_folds(numbered(5), folds=folds)


numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_metrics_equal_their_formulas(pairs: list[tuple[float, float]]) -> None:
    x, y = zip(*pairs, strict=True)
    errors = [a - b for a, b in pairs]
    expected = math.hypot(*errors) / math.sqrt(len(errors))
    assert expected == pytest.approx(rmse(x, y), rel=1e-12, abs=1e-300)
    assert math.fsum(map(abs, errors)) / len(errors) == pytest.approx(mae(x, y), rel=1e-12)


@pytest.mark.parametrize("metric", [rmse, mae])
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-200, 1e30, 1e300])
def test_metric_of_a_constant_error_is_that_error(metric: type[rmse], size: float) -> None:
    assert size == metric(np.full(4, size), np.zeros(4))


@pytest.mark.parametrize("metric", [rmse, mae])
def test_metric_is_the_same_for_tensors_and_arrays(metric: type[rmse]) -> None:
    x, y = np.array([[1.0, 2.5]], dtype=np.float32), np.array([[4, 2]])
    tensor = torch.tensor(x, requires_grad=True)
    assert metric(x, y) == metric(tensor, torch.tensor(y)) == metric(tensor, y)


def test_metric_is_computed_in_float64() -> None:
    # 1e8 + 1 is not a float32, so a float32 subtraction could not give this.
    assert 1.0 == mae(torch.tensor([1e8], dtype=torch.float32), [1e8 + 1])


@pytest.mark.parametrize("metric", [rmse, mae])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metric_of_a_diverged_prediction_is_not_finite(metric: type[rmse], value: float) -> None:
    assert not math.isfinite(metric([value, 1.0], [0.0, 0.0]))


@pytest.mark.parametrize("metric", [rmse, mae])
def test_metric_does_not_broadcast(metric: type[rmse]) -> None:
    with pytest.raises(ShapeError, match=r"same shape; got \(2, 1\) and \(2,\); reshape"):
        metric(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize("metric", [rmse, mae])
def test_metric_of_nothing_is_an_error(metric: type[rmse]) -> None:
    with pytest.raises(ObservationError, match="at least one entry; got none"):
        metric([], [])
