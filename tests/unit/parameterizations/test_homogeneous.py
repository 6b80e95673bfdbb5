"""The homogeneous Schatten balls: bound, every member, first gradient."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import RadiusError
from tests.oracles import (
    FRACTIONS,
    PROFILES,
    SHAPES,
    D,
    dense,
    fill,
    fill_parallel,
    matrix,
    normal,
    schatten,
    singular_values,
    tolerance,
    zero_start_gradient,
)

ORDERS = [1.0, 1.5, 2.0, 3.0, 8.0]


@pytest.mark.parametrize("p", ORDERS)
def test_homogeneous_is_the_formula(p):
    layer = fill(lo.HomogeneousBall((5, 4), 3, radius=2.0, p=p, dtype=D))
    B, A = layer.left.detach().numpy(), layer.right.detach().numpy()
    size = lambda x: np.sum(np.linalg.svd(x, compute_uv=False) ** (2 * p))  # noqa: E731
    expected = 2.0 * B @ A.T / ((size(A) + size(B)) / 2) ** (1 / p)
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-160, 1e-30, 1.0, 1e4, 1e150, 1e307])
@pytest.mark.parametrize("fill", [fill, fill_parallel], ids=["random", "parallel"])
def test_homogeneous_never_leaves_the_ball(p, size, fill):
    op = fill(lo.HomogeneousBall((6, 5), 3, radius=0.7, p=p, dtype=D), size)()
    assert schatten(singular_values(op), p) <= 0.7 * (1 + tolerance(D, 3))


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
def test_homogeneous_low_precision(p, dtype, size):
    op = fill(lo.HomogeneousBall((6, 5), 3, radius=0.7, p=p, dtype=dtype), size)()
    assert schatten(singular_values(op), p) <= 0.7 * (1 + tolerance(dtype, 3))


def test_homogeneous_balanced_factors_are_on_the_boundary():
    layer = lo.HomogeneousBall((4, 4), 2, radius=3.0, dtype=D)
    with torch.no_grad():
        layer.left.copy_(layer.right)
    assert float(layer().schatten_norm(1).detach()) == pytest.approx(3.0, rel=1e-15)


@pytest.mark.parametrize("p", [1.0, 2.5])
@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_homogeneous_reaches_every_member(p, m, n, r, profile):
    sigma = profile(r)
    for fraction in FRACTIONS:
        W = matrix(m, n, 2.0 * fraction / schatten(sigma, p) * sigma)
        layer = lo.HomogeneousBall((m, n), r, radius=2.0, p=p, dtype=D).assign(torch.tensor(W))
        np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_homogeneous_starts_at_zero_with_the_published_gradient(p, m, n, r):
    layer, G = lo.HomogeneousBall((m, n), r, radius=2.0, p=p, dtype=D), normal(m, n)
    assert not dense(layer()).any()
    A = layer.right.detach()
    powers = np.sum(np.linalg.svd(A.numpy(), compute_uv=False) ** (2 * p))
    gradients = zero_start_gradient(layer, G)
    torch.testing.assert_close(gradients["left"], 2.0 * G @ A / (powers / 2) ** (1 / p))
    assert float(gradients["right"].abs().max()) == 0.0


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_homogeneous_does_not_change_with_the_common_size(p):
    layer = fill(lo.HomogeneousBall((5, 4), 2, radius=1.0, p=p, dtype=D))
    before = dense(layer())
    with torch.no_grad():
        layer.left.mul_(2.0**-40)
        layer.right.mul_(2.0**-40)
    np.testing.assert_array_equal(dense(layer()), before)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_homogeneous_gradcheck(p):
    layer = fill(lo.HomogeneousBall((4, 3), 2, radius=2.0, p=p, dtype=D))
    names = [k for k, _ in layer.named_parameters()]

    def value(*tensors):
        parameters = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(layer, parameters, ()).to_dense()

    assert torch.autograd.gradcheck(value, tuple(layer.parameters()))


@pytest.mark.parametrize("p", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_homogeneous_refuses_orders_outside_its_domain(p):
    with pytest.raises(RadiusError, match=rf"p must be in \[1, inf\); got p={p}.*NBLoRA"):
        lo.HomogeneousBall((4, 3), 2, radius=1.0, p=p)


def test_homogeneous_projects_huge_targets():
    target = torch.diag(torch.tensor([1e308, 1e308], dtype=D))
    layer = lo.HomogeneousBall((2, 2), 2, radius=1.0, dtype=D).assign(target, project=True)
    np.testing.assert_allclose(dense(layer()), 0.5 * np.eye(2), rtol=0, atol=1e-15)
