"""Stochastic gradient descent: its step by hand, its order, and what it must survive."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import CompletionStatus, sgd
from lowrank_opt.errors import OptionError
from lowrank_opt.kernels import step_order
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.observations import Observations
from tests.builders import seeded


def planted(noise=0.0, m=60, n=50, rank=2, count=1500, scale=1.0, dtype=torch.float64):
    g = seeded()
    W = (
        scale
        * torch.randn(m, rank, generator=g, dtype=dtype)
        @ torch.randn(rank, n, generator=g, dtype=dtype)
    )
    Y = W + noise * scale * torch.randn(m, n, generator=g, dtype=dtype)
    cells = torch.randperm(m * n, generator=g)[:count]
    return Observations(cells // n, cells % n, Y.view(-1)[cells], (m, n)), W


def relative_error(result, W):
    return float((result.to_dense() - W).norm() / W.norm())


def epoch_by_hand(obs, factors, biases, rate, penalty):
    """The steps of one epoch in plain Python, in the order of rows, then columns."""
    (U, V), (a, c) = ([x.copy() for x in pair] for pair in (factors, biases))
    order = np.lexsort((obs.cols, obs.rows))
    entries = [x.numpy()[order] for x in (obs.rows, obs.cols, obs.values, obs.weights)]
    loss = 0.0
    for i, j, y, w in zip(*entries, strict=True):
        e = y - U[i] @ V[j] - a[i] - c[j]
        loss += w * e**2
        step = rate * w * e / (1 + rate * w * (U[i] @ U[i] + V[j] @ V[j] + 2))
        keep = 1 / (1 + rate * w * penalty)
        a[i], c[j] = keep * a[i] + step, keep * c[j] + step
        U[i], V[j] = keep * U[i] + step * V[j], keep * V[j] + step * U[i]
    return loss, U, V, a, c


def test_epoch_equals_steps_by_hand(row_backend):
    obs, _ = planted(0.1, count=200)
    weights = torch.rand(200, generator=seeded(1), dtype=torch.float64)
    obs = Observations(obs.rows, obs.cols, obs.values, obs.shape, weights)
    rng = np.random.default_rng(0)
    factors = (rng.standard_normal((60, 3)), rng.standard_normal((50, 3)))
    biases = (rng.standard_normal(60), rng.standard_normal(50))
    expected = epoch_by_hand(obs, factors, biases, 0.1, 0.3)
    steps = backend_of(obs.device).steps(obs, rank=3)
    found = [tuple(torch.from_numpy(x) for x in pair) for pair in (factors, biases)]
    loss = steps.epoch(*found, rate=0.1, penalty=0.3)
    for x, y in zip((loss, *factors, *biases), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)


def test_blocks_of_a_diagonal_share_neither_rows_nor_columns(monkeypatch):
    monkeypatch.setattr(step_order, "_WORTH_A_GRID", 1)
    obs, _ = planted()
    order = step_order.order_of(obs, rank=2)
    assert (4, 5) == order.bounds.shape
    for x in (order.rows, order.cols):
        members = [[set(x[a:b]) for a, b in pairwise(ends)] for ends in order.bounds]
        assert all(len(set.union(*sets)) == sum(map(len, sets)) for sets in members)
    pairs = set(zip(order.rows.tolist(), order.cols.tolist(), strict=True))
    assert set(zip(obs.rows.tolist(), obs.cols.tolist(), strict=True)) == pairs


def test_result_does_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(step_order, "_WORTH_A_GRID", 1)
    obs, before, results = planted(0.1)[0], torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sgd(obs, 3, max_iterations=5, generator=seeded()).to_dense())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_noiseless_matrix_is_recovered_at_any_scale(scale):
    obs, W = planted(scale=scale)
    settings = {"penalty": 0.0, "learning_rate": 0.05, "max_iterations": 400}
    assert relative_error(sgd(obs, 2, **settings, generator=seeded()), W) < 1e-3


def test_early_stop_keeps_noise_out():
    obs, W = planted(1.0)
    late = sgd(obs, 20, learning_rate=0.05, max_iterations=200, penalty=0.0, generator=seeded())
    early = sgd(obs, 20, learning_rate=0.05, penalty=0.0, generator=seeded())
    assert len(early.history) < 200
    assert relative_error(early, W) < 0.7 * relative_error(late, W)


def test_heavy_weights_do_not_overshoot():
    obs, W = planted(0.1)
    weights = 10 ** (4 * torch.rand(len(obs), generator=seeded(1), dtype=torch.float64))
    heavy = Observations(obs.rows, obs.cols, obs.values, obs.shape, weights)
    result = sgd(heavy, 2, learning_rate=1.0, max_iterations=50, generator=seeded())
    assert bool(torch.isfinite(result.to_dense()).all())
    assert relative_error(result, W) < 1.0


@pytest.mark.parametrize(
    ("rows", "values"),
    [([0], [3.0]), ([0, 1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0, 5.0]), ([1, 3], [2.0, 2.0])],
)
def test_tiny_data_give_predictions_within_reach(rows, values):
    dense = sgd(Observations(rows, rows, values, (6, 7)), generator=seeded()).to_dense()
    assert min(values) - 1e-3 <= float(dense.min())
    assert float(dense.max()) <= max(values) + 1e-3


def test_unseen_rows_are_predicted_by_mean_and_column_bias():
    obs, _ = planted(0.1)
    larger = Observations(obs.rows, obs.cols, obs.values, (61, 50))
    result = sgd(larger, 3, max_iterations=30, generator=seeded())
    expected = result.bias.mean + result.bias.cols
    assert float((result.predict(60, torch.arange(50)) - expected).abs().max()) < 0.1


def test_result_lies_in_a_set_that_was_asked_for():
    feasible = lo.SchattenBall(p=1, radius=20.0, rank=3)
    result = sgd(planted(0.1)[0], feasible, max_iterations=150, generator=seeded())
    assert feasible.contains(result.operator)
    assert 20.0 == pytest.approx(float(result.operator.schatten_norm(1)))


def test_validation_entries_choose_the_epoch_without_another_fit():
    kept, held = planted(1.0)[0].split(0.2, generator=seeded(1))
    result = sgd(kept, 20, learning_rate=0.05, validation=held, generator=seeded())
    assert CompletionStatus.STOPPED_BY_VALIDATION == result.status
    errors = result.predict(held.rows, held.cols) - held.values
    assert min(result.history.validation_rmse) == pytest.approx(
        float(errors.square().mean().sqrt())
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank must be a positive integer"),
        ({"penalty": -1.0}, "penalty must be finite and nonnegative"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"max_iterations": 0}, "max_iterations must be a positive integer"),
    ],
)
def test_settings_outside_their_domain_raise(setting, message):
    with pytest.raises(OptionError, match=message):
        sgd(planted()[0], **setting)
