"""Biases alone, and the unit of objectives, against dense least squares."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

import lowrank_opt as lo
from lowrank_opt.completion.model.bias import (
    fit_additive_bias,
    loss_of_the_mean,
    no_bias,
    weighted_mean,
)
from lowrank_opt.distributed import split_rows
from lowrank_opt.errors import OptionError

ROWS, COLS, VALUES = [0, 0, 1, 2], [0, 1, 1, 2], [4.0, 1.0, 3.0, 7.0]
WEIGHTS = [0.5, 0.25, 2.0, 0.125]


def observed(weights=None):
    given = None if weights is None else torch.tensor(weights)
    return lo.Observations(ROWS, COLS, torch.tensor(VALUES).double(), (4, 3), given)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_biases_are_those_of_dense_least_squares(weights, penalty):
    w, v = np.ones(4) if weights is None else np.array(weights), np.array(VALUES)
    mean = (w @ v) / w.sum()
    design = np.zeros((4, 7))
    design[range(4), ROWS] = design[range(4), [4 + j for j in COLS]] = 1
    gram = design.T @ (w[:, None] * design) + penalty * np.eye(7)
    a, b = np.split(np.linalg.pinv(gram) @ design.T @ (w * (v - mean)), [4])
    bias = fit_additive_bias(observed(weights), penalty=penalty)
    i, j = torch.tensor(ROWS), torch.tensor(COLS)
    np.testing.assert_allclose(bias.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(bias.predict(i, j), mean + a[ROWS] + b[COLS], rtol=1e-8)
    assert float(bias.rows[3]) == 0.0, "a row that was never seen"


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_unit_of_objectives_is_half_the_spread(weights):
    w, v = np.ones(4) if weights is None else np.array(weights), np.array(VALUES)
    mean = np.average(v, weights=w)
    assert weighted_mean(observed(weights)) == pytest.approx(mean, rel=1e-14)
    expected = 0.5 * (w @ (v - mean) ** 2)
    assert loss_of_the_mean(observed(weights)) == pytest.approx(expected, rel=1e-13)


def test_parts_count_with_their_weights():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        part = split_rows(observed(WEIGHTS))
        assert weighted_mean(part) == pytest.approx(weighted_mean(observed(WEIGHTS)), rel=1e-14)
    finally:
        dist.destroy_process_group()


def test_no_bias_predicts_zero():
    bias = no_bias(observed())
    assert ((4,), (3,)) == (bias.rows.shape, bias.cols.shape)
    assert float(bias.predict(torch.tensor([1]), torch.tensor([2]))) == 0.0


@pytest.mark.parametrize("penalty", [-1.0, float("inf"), float("nan")])
def test_penalties_are_finite_and_not_negative(penalty):
    with pytest.raises(OptionError, match="finite and nonnegative"):
        fit_additive_bias(observed(), penalty=penalty)
