"""Frames of factors, and small matrices by NumPy and by torch: two ways to the same numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lowrank_opt.training import (
    FactorPair,
)
from lowrank_opt.training.algebra import small as small_module
from lowrank_opt.training.algebra.small import small, tensor
from lowrank_opt.training.algebra.thin_basis import thin_bases
from lowrank_opt.training.optimizers.spectral_descent import msign
from lowrank_opt.training.ranks.rank_allocator import _cut
from tests.pair_optimizers import OPTIMIZERS


def factor(m: int, r: int, condition: float, seed: int = 0, size: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, r, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(r, r, generator=g, dtype=torch.float64)).Q
    return size * (U * torch.logspace(0, 1, r, base=1 / condition, dtype=torch.float64)) @ V.T


def parts(factors, side):
    bases = thin_bases(factors)
    frame = bases.frames.dense()[side].double()
    return frame, tensor(bases.roots[side]), tensor(bases.inverses[side]), bases


@pytest.mark.parametrize("condition", [1.0, 9.0, 50.0, 900.0, 1e5])
@pytest.mark.parametrize(("dtype", "m"), [(torch.float64, 30), (torch.float32, 30), (None, 20000)])
def test_frame_times_root_is_the_factor(condition, dtype, m):
    dtype = dtype or torch.float32
    F = factor(m, 4, condition).to(dtype)
    eps = torch.finfo(dtype).eps
    for side, factors in ((0, (F, factor(40, 4, 1.0).to(dtype))), (1, (F[:25] * 3, F))):
        frame, root, inverse, bases = parts(factors, side)
        exact = factors[side].double()
        assert float((frame @ root - exact).norm()) <= 16 * eps * float(exact.norm())
        eye = torch.eye(4, dtype=torch.float64)
        # A Gram matrix alone would lose condition^2 eps; up to 10 it may.
        assert float((frame.T @ frame - eye).norm()) <= 200 * eps
        assert float((root @ inverse - eye).norm()) <= 1e-12 * condition
        gram = exact.T @ exact
        torch.testing.assert_close(
            tensor(bases.grams[side]), gram, rtol=0, atol=16 * eps * float(gram.norm())
        )


def test_only_well_conditioned_frames_are_left_as_products():
    F, G = factor(30, 4, 5.0).float(), factor(20, 4, 50.0).float()
    norms = thin_bases((F, G)).inverse_norms
    assert norms[0] == pytest.approx(float(torch.linalg.pinv(F.double()).norm()), rel=1e-4)
    assert norms[1] == float("inf")


@pytest.mark.parametrize(
    "F",
    [
        torch.zeros(6, 3),
        torch.ones(6, 3),
        torch.tensor([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]]),
        torch.full((6, 3), 1e30).tril(),
        torch.full((6, 3), 1e-30).tril(),
    ],
    ids=["zero", "parallel", "wide", "huge", "tiny"],
)
def test_directions_that_vanish_are_left_out(F):
    rank = int(torch.linalg.matrix_rank(F.double()))
    for side, factors in ((0, (F, torch.eye(3))), (1, (torch.eye(3), F))):
        frame, root, inverse, _ = parts(factors, side)
        gram = torch.linalg.svdvals(frame)
        torch.testing.assert_close(gram[:rank], torch.ones(rank).double(), rtol=0, atol=1e-5)
        assert not bool(gram[rank:].any())
        scale = float(F.double().norm()) or 1.0
        assert float((frame @ root - F.double()).norm()) <= 1e-5 * scale
        assert bool(torch.isfinite(inverse).all())


def test_msign_of_any_condition_is_the_polar_factor():
    for condition in (2.0, 50.0, 5e3):
        x = factor(30, 4, condition).float()
        U, _, Vh = torch.linalg.svd(x.double(), full_matrices=False)
        # The polar factor itself moves by condition * eps under rounding of x.
        torch.testing.assert_close(msign(x).double(), U @ Vh, rtol=0, atol=4e-6 * condition)


def path(make, L: Tensor, R: Tensor, steps: int = 12) -> Tensor:
    g = torch.Generator().manual_seed(5)
    Y = torch.randn(len(L), len(R), generator=g, dtype=torch.float64).to(L.dtype)
    L, R = L.clone().requires_grad_(), R.clone().requires_grad_()
    optimizer = make([FactorPair(L, R)])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (L @ R.T - Y).square().sum()).backward()
        optimizer.step()
    return (L @ R.T).detach().double()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("condition", [2.0, 100.0, None])
def test_torch_and_numpy_take_the_same_path(make, condition, monkeypatch):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        L = factor(14, 3, condition or 1.0).to(dtype) * (0.0 if condition is None else 1.0)
        R = factor(11, 3, condition or 1.0, seed=1).to(dtype)
        by_numpy = path(make, L, R)
        with monkeypatch.context() as patch:
            patch.setattr(small_module, "_NUMPY_RANK", 0)
            assert isinstance(small(L), Tensor)
            by_torch = path(make, L, R)
        assert float((by_numpy - by_torch).norm()) <= tolerance * float(by_numpy.norm())


def test_large_ranks_are_computed_by_torch():
    kinds = [type(thin_bases((torch.eye(r), torch.eye(r))).roots) for r in (16, 17)]
    assert [np.ndarray, Tensor] == kinds


def shrinking_path(make) -> Tensor:
    """Take steps at rank 3, cut the last component, which is zero, and go on at rank 2."""
    L, R = factor(14, 3, 2.0).requires_grad_(), factor(11, 3, 2.0, seed=1).requires_grad_()
    pair = FactorPair(L, R)
    optimizer = make([pair])
    for step in range(8):
        if step == 4:
            _cut(pair, torch.tensor([0, 1]), optimizer)
        optimizer.zero_grad()
        (L @ R.T).sin().square().sum().backward()
        optimizer.step()
    return (L @ R.T).detach()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_rank_that_shrinks_may_change_the_kind(make, monkeypatch):
    expected = shrinking_path(make)
    monkeypatch.setattr(small_module, "_NUMPY_RANK", 2)
    torch.testing.assert_close(shrinking_path(make), expected, rtol=1e-10, atol=1e-12)
