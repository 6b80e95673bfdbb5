"""Simplex terms, SVD frames, AdaLoRA and dynamic ranks against closed forms."""

from functools import partial

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError
from lowrank_opt.linalg import polar_frame, qr_frame
from lowrank_opt.training.ranks.budget import cubic_budget, keep_largest
from lowrank_opt.training.ranks.sensitivity import SensitivityAverage
from tests.oracles import expect_boundary_reached

MAKES = {
    "simplex": partial(lo.SimplexRankOnes, radius=2.0),
    "cayley": partial(lo.SVDFrames, frame="cayley"),
    "polar": partial(lo.SVDFrames, frame="polar", radius=1.5),
    "qr": partial(lo.SVDFrames, frame="qr", radius=1.5),
    "manifold": partial(lo.SVDFrames, frame="manifold", radius=1.5),
    "adalora": partial(lo.AdaLoRA, scaling=2.0),
    "dynamic": partial(lo.DynamicRank, scaling=2.0),
}
every_family = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())


def made(make, shape=(6, 5), rank=3):
    torch.manual_seed(0)
    return make(shape, rank, dtype=torch.float64)


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


@every_family
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_zero_start_is_exact_and_has_a_gradient(make, rank: int) -> None:
    module = made(make, rank=rank)
    op = module.zero_()()
    assert 0 == op.to_dense().abs().max().item()
    op.linear(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@every_family
def test_right_inverse_reaches_boundary_and_rank_deficient_targets(make) -> None:
    expect_boundary_reached(made(make), atol=1e-12)


def test_simplex_equals_the_formula() -> None:
    module = made(MAKES["simplex"], rank=4)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    z = array(module.weights)
    u, v = (x / np.linalg.norm(x, axis=0) for x in (array(module.left), array(module.right)))
    expected = 2 * (u * (z**2 / (z**2).sum())[:4]) @ v.T
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-14)


def test_simplex_at_zero_target_keeps_a_gradient() -> None:
    module = made(MAKES["simplex"]).assign(torch.zeros(6, 5, dtype=torch.float64))
    module().linear(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
    assert bool(module.left.grad.any())


def test_polar_frame_is_the_nearest_one() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    U, _, Vh = np.linalg.svd(array(x), full_matrices=False)
    np.testing.assert_allclose(array(polar_frame(x)), U @ Vh, atol=1e-14)


def test_qr_frame_has_nonnegative_pivots() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    R = array(qr_frame(x)).T @ array(x)
    np.testing.assert_allclose(R, np.triu(R), atol=1e-14)
    assert (np.diag(R) > 0).all()


@pytest.mark.parametrize("frame", [polar_frame, qr_frame])
def test_frames_have_exact_derivatives(frame) -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(frame, (x,))


def test_polar_frame_has_a_derivative_at_repeated_singular_values() -> None:
    x = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q.requires_grad_()
    assert torch.autograd.gradcheck(polar_frame, (x,))


@pytest.mark.parametrize("frame", [polar_frame, qr_frame])
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-160, 1e4, 1e300])
def test_frames_survive_any_size_and_parallel_columns(frame, size: float) -> None:
    x = (size * torch.ones(6, 3, dtype=torch.float64)).requires_grad_()
    Q = frame(x)
    np.testing.assert_allclose(array(Q.mT @ Q), np.eye(3), atol=1e-14)
    Q[:, 1].sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("frame", ["cayley", "polar", "qr"])
def test_free_frames_keep_the_spectral_bound(frame: str) -> None:
    module = lo.SVDFrames((6, 5), 3, frame=frame, radius=1.5, dtype=torch.float64)
    for size in (1e-160, 1.0, 1e4, 1e8):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=size)
        assert module.feasible_set.contains(module().detach())


@pytest.mark.parametrize("name", ["RiemannianAdam", "RiemannianSGD"])
def test_geoopt_optimizers_drive_the_manifold_frames(name: str) -> None:
    geoopt = pytest.importorskip("geoopt")
    target = torch.diag(torch.tensor([1.0, 0.7, 0.4, 0, 0], dtype=torch.float64))
    module = lo.SVDFrames((5, 5), 3, frame="manifold", dtype=torch.float64)
    module.assign(lo.LowRankOperator.from_dense(target + 0.05 * torch.randn(5, 5)), project=True)
    optimizer = getattr(geoopt.optim, name)(module.parameters(), lr=0.02)
    start = (module().to_dense() - target).square().sum().item()
    for _ in range(60):
        optimizer.zero_grad()
        (module().to_dense() - target).square().sum().backward()
        optimizer.step()
    assert (module().to_dense() - target).square().sum().item() < 0.5 * start
    np.testing.assert_allclose(array(module.left.mT @ module.left), np.eye(3), atol=1e-10)


def test_unknown_frame_is_refused() -> None:
    with pytest.raises(OptionError, match="frame must be one of"):
        lo.SVDFrames((3, 3), 1, frame="householder")


@pytest.mark.parametrize("squared", [True, False])
def test_adalora_penalty_is_zero_where_orthonormal_only(squared: bool) -> None:
    module = made(MAKES["adalora"])
    assert module.orthogonality_penalty(squared=squared).item() < 1e-14
    with torch.no_grad():
        module.left.mul_(2.0)
    expected = 27.0 if squared else 27.0**0.5 / 2
    assert module.orthogonality_penalty(squared=squared).item() == pytest.approx(expected)


def test_dynamic_shares_equal_dense_norms() -> None:
    module = made(MAKES["dynamic"])
    for p in module.parameters():
        torch.nn.init.normal_(p)
    b, c, a = array(module.left), array(module.values), array(module.right)
    terms = np.array([np.linalg.norm(2 * c[i] * np.outer(b[:, i], a[:, i])) for i in range(3)])
    W = 2 * (b * c) @ a.T
    np.testing.assert_allclose(array(module.shares()), terms / np.linalg.norm(W), rtol=1e-12)
    assert np.linalg.norm(W, "nuc") <= module.nuclear_bound().item()


def test_dynamic_penalty_is_the_variance() -> None:
    module = made(MAKES["dynamic"])
    expected = array(module.left).var(0).mean() + array(module.right).var(0).mean()
    assert module.dispersion_penalty().item() == pytest.approx(expected)


def test_keep_largest_meets_the_count_with_ties() -> None:
    assert [True, True, False, False] == keep_largest(torch.zeros(4), 2).tolist()


def test_keep_largest_refuses_a_count_out_of_range() -> None:
    with pytest.raises(RankError, match=r"count must be in 0..4; got count=5"):
        keep_largest(torch.zeros(4), 5)


def test_budget_never_increases_and_meets_its_ends() -> None:
    budget = [cubic_budget(t, start=30, end=8, warmup=5, finish=50) for t in range(60)]
    assert budget == sorted(budget, reverse=True)
    assert (30, 8, 8) == (budget[5], budget[50], budget[-1])


def test_budget_refuses_ends_in_the_wrong_order() -> None:
    with pytest.raises(RankError, match="end <= start"):
        cubic_budget(0, start=1, end=2, warmup=0, finish=1)


def test_sensitivity_average_of_constant_input_settles() -> None:
    average = SensitivityAverage(0.5, 0.5)
    for _ in range(60):
        average.update({"w": (torch.tensor([2.0]), torch.tensor([-3.0]))})
    assert average.importance("w").item() == pytest.approx(0.0, abs=1e-6)
