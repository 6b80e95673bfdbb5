"""Plain LoRA: every matrix of that rank, and its first gradient."""

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from tests.oracles import (
    FRACTIONS,
    PROFILES,
    SHAPES,
    D,
    dense,
    fill,
    matrix,
    normal,
    zero_start_gradient,
)


@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_factored_is_the_product(scaling):
    layer = fill(lo.Factored((5, 4), 2, scaling=scaling, dtype=D))
    expected = scaling * layer.left.detach().numpy() @ layer.right.detach().numpy().T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("size", [*FRACTIONS, 1e10, 1e200])
def test_factored_reaches_every_matrix(m, n, r, profile, size):
    W = matrix(m, n, size * profile(r))
    layer = lo.Factored((m, n), r, scaling=0.5, dtype=D).assign(torch.tensor(W))
    np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=1e-14 * r * size)


@pytest.mark.parametrize("size", [1.0, 1e-100])
def test_factored_right_inverse_is_balanced(size):
    layer = lo.Factored((5, 4), 3, dtype=D).assign(torch.tensor(matrix(5, 4, size * np.ones(3))))
    left, right = layer.left.detach(), layer.right.detach()
    torch.testing.assert_close(left.mT @ left, right.mT @ right, rtol=1e-12, atol=1e-14 * size)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_factored_starts_at_zero_with_the_gradient_of_lora(m, n, r):
    layer, G = lo.Factored((m, n), r, scaling=0.5, dtype=D), normal(m, n)
    assert not dense(layer()).any()
    gradients = zero_start_gradient(layer, G)
    torch.testing.assert_close(gradients["left"], 0.5 * G @ layer.right.detach())
    assert not gradients["right"].any()


def test_factored_zero_target_keeps_a_gradient():
    layer = lo.Factored((5, 4), 2, dtype=D).assign(torch.zeros(5, 4, dtype=D))
    assert float(zero_start_gradient(layer, normal(5, 4))["left"].norm()) > 0.5


def test_weight_decay_bounds_the_nuclear_norm():
    layer = fill(lo.Factored((6, 5), 3, dtype=D))
    decay = (layer.left.square().sum() + layer.right.square().sum()) / 2
    assert float(layer().schatten_norm(1).detach()) <= float(decay.detach())


def test_rank_as_integral_float_is_accepted():
    assert 2 == lo.Factored((4, 3), 2.0).rank
