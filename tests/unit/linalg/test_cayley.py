"""Cayley transforms and their inverses against formulas, signs and determinants."""

import itertools

import numpy as np
import pytest
import torch

from lowrank_opt.linalg import (
    cayley_signs,
    inverse_cayley,
    symmetric_inverse_cayley,
    tall_cayley,
)
from tests.builders import normal

D = torch.float64


def frame(rows, cols, seed=0):
    return torch.from_numpy(np.linalg.qr(normal(rows, cols, seed=seed).numpy())[0])


def plain_cayley(X, Y):
    return cayley_of(X - X.mT + Y.mT @ Y, Y)


def cayley_of(Z, Y):
    eye = torch.eye(len(Z), dtype=Z.dtype)
    M = torch.linalg.inv(eye + Z)
    return torch.cat(((eye - Z) @ M, -2 * Y @ M))


@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (5, 1), (0, 4), (7, 4)], ids=str)
def test_tall_cayley_is_the_formula(shape):
    k, r = shape
    X, Y = normal(r, r), normal(k, r, seed=1)
    G = tall_cayley(X, Y)
    torch.testing.assert_close(G, plain_cayley(X, Y), rtol=0, atol=1e-13)
    torch.testing.assert_close(G.mT @ G, torch.eye(r, dtype=D), rtol=0, atol=1e-13)


def nearly_parallel(size, dtype, seed=0):
    a = normal(12, 1, seed=seed)
    columns = torch.cat((a, a + 1e-2 / size * normal(12, 1, seed=seed + 1)), dim=1)
    return (size * columns).to(dtype)


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_plain_cayley_leaves_unit_ball_in_float32(size):
    """What the shift, float64 and the polish are for."""
    family = [nearly_parallel(size, torch.float32, seed).double() for seed in range(0, 40, 2)]
    # One rounding, made explicit: that of Z = Y'Y to float32, and Z is indefinite. All else is
    # float64, so that no processor's order of summation decides which members fail.
    rounded, exact = (
        [
            float(torch.linalg.matrix_norm(cayley_of(rounding(Y.mT @ Y).double(), Y), 2))
            for Y in family
        ]
        for rounding in (torch.Tensor.float, torch.Tensor.double)
    )
    assert sum(norm > 1.001 for norm in rounded) >= 3
    assert max(exact) < 1 + 1e-6


@pytest.mark.parametrize("size", [1.0, 100.0, 1e3, 1e4, 1e6, 1e10, 1e100, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("skew", [None, "same size"])
def test_tall_cayley_never_leaves_unit_ball(size, dtype, skew):
    size = min(size, 1e38 if dtype == torch.float32 else size)
    Y = nearly_parallel(min(size, 1e37), dtype) if size < 1e100 else size * normal(12, 2)
    X = None if skew is None else (size * normal(2, 2, seed=3)).to(dtype)
    norm = np.linalg.norm(tall_cayley(X, Y).numpy(), 2)
    assert norm <= 1 + 1e-14


def test_tall_cayley_ignores_the_symmetric_part():
    S = normal(3, 3)
    X, Y = (S + S.mT).requires_grad_(), normal(5, 3, seed=1)
    G = tall_cayley(X, Y)
    (G * normal(8, 3, seed=2)).sum().backward()
    torch.testing.assert_close(G.detach(), tall_cayley(None, Y), rtol=0, atol=1e-15)
    torch.testing.assert_close(X.grad + X.grad.mT, torch.zeros(3, 3, dtype=D), rtol=0, atol=1e-15)


@pytest.mark.parametrize("stack", [(), (2,), (1, 3)])
def test_derivatives_of_tall_cayley(stack):
    X, Y = normal(*stack, 2, 2).requires_grad_(), normal(*stack, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(tall_cayley, (X, Y), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(tall_cayley, (X, Y))


@pytest.mark.parametrize("r", [1, 2, 5])
def test_cayley_signs_of_minus_identity_flip_all(r):
    assert torch.equal(-torch.ones(r), cayley_signs(-torch.eye(r)))


@pytest.mark.parametrize("seed", range(10))
def test_cayley_signs_enlarge_the_determinant(seed):
    top = frame(9, 6, seed=seed)[:6]
    chosen = np.linalg.det(np.eye(6) + top.numpy() * cayley_signs(top).numpy())
    patterns = itertools.product((-1.0, 1.0), repeat=6)
    all_of_them = [np.linalg.det(np.eye(6) + top.numpy() * np.array(d)) for d in patterns]
    # The signed determinants sum to 2^r (the proof that good signs exist).
    signs = [np.prod(d) for d in itertools.product((-1.0, 1.0), repeat=6)]
    diagonal = [
        np.linalg.det(np.diag(d) + top.numpy()) for d in itertools.product((-1.0, 1.0), repeat=6)
    ]
    assert np.dot(signs, diagonal) == pytest.approx(2.0**6)
    assert abs(chosen) >= 1 - 1e-12
    assert abs(chosen) >= max(np.abs(all_of_them)) / 4


FRAMES = {
    "random": frame(9, 4),
    "square": frame(5, 5, seed=1),
    "minus identity": torch.cat((-torch.eye(3, dtype=D), torch.zeros(2, 3, dtype=D))),
    "zero top": torch.cat((torch.zeros(3, 3, dtype=D), frame(6, 3))),
    "one column": frame(4, 1, seed=2),
    "one by one": -torch.ones(1, 1, dtype=D),
}


@pytest.mark.parametrize("G", FRAMES.values(), ids=FRAMES)
def test_inverse_cayley_restores_columns_up_to_sign(G):
    skew, rows = inverse_cayley(G)
    torch.testing.assert_close(tall_cayley(skew, rows).abs(), G.abs(), rtol=0, atol=1e-13)
    assert float(rows.norm(dim=0).max()) <= 1.01
    assert float(skew.abs().max()) <= 1.01


@pytest.mark.parametrize("G", FRAMES.values(), ids=FRAMES)
def test_symmetric_inverse_cayley_restores_the_span(G):
    rows = symmetric_inverse_cayley(G)
    H = tall_cayley(None, rows)
    torch.testing.assert_close(H @ H.mT, G @ G.mT, rtol=0, atol=1e-13)
    assert np.linalg.norm(rows.numpy(), 2) <= 1 + 1e-14
