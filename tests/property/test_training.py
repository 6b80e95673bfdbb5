"""Invariants of the training methods, against dense computations with the full gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_opt.training import (
    FactorPair,
    LoRAPro,
    LoRAProAdamW,
    LoRARite,
    ScaledAdamW,
    ScaledGD,
    SpectralDescent,
)
from lowrank_opt.training.algebra.pair_view import read_pair
from lowrank_opt.training.optimizers.lora_pro import tangent_direction

INVARIANT = {
    "ScaledGD": lambda pairs: ScaledGD(pairs, lr=0.1),
    "LoRARite": lambda pairs: LoRARite(pairs, lr=0.1),
    "LoRARite escaped": lambda pairs: LoRARite(pairs, lr=0.1, escaped_mass=True),
    "LoRARite decay": lambda pairs: LoRARite(pairs, lr=0.1, weight_decay=0.1),
    "LoRAPro": lambda pairs: LoRAPro(pairs, lr=0.2),
    "LoRAPro zero": lambda pairs: LoRAPro(pairs, lr=0.2, split="zero"),
    "LoRAPro momentum": lambda pairs: LoRAPro(pairs, lr=0.1, momentum=0.9, normalized=True),
    "SpectralDescent": lambda pairs: SpectralDescent(pairs, lr=0.1),
}
NOT_INVARIANT = {
    "AdamW": lambda pairs: torch.optim.AdamW([x for p in pairs for x in (p.left, p.right)], lr=0.1),
    "ScaledAdamW": lambda pairs: ScaledAdamW(pairs, lr=0.1),
    "LoRAProAdamW": lambda pairs: LoRAProAdamW(pairs, lr=0.1),
    "LoRAPro sylvester": lambda pairs: LoRAPro(pairs, lr=0.2, split="sylvester"),
}
SEEDS = st.integers(0, 2**32 - 1)
M, N, R = 14, 11, 3


def normal(*size: int, g: torch.Generator) -> Tensor:
    return torch.randn(*size, generator=g, dtype=torch.float64)


def gauge(condition: float, g: torch.Generator) -> Tensor:
    U, V = torch.linalg.qr(normal(R, R, g=g)).Q, torch.linalg.qr(normal(R, R, g=g)).Q
    return (U * torch.tensor([condition, condition**0.5, 1.0], dtype=U.dtype)) @ V.T


def regauged(left: Tensor, right: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    return left @ T, right @ torch.linalg.inv(T).T


def path(make, left, right, seed: int, *, mid_run: Tensor | None = None, steps: int = 50):
    """Return W after each of 50 noisy steps; the data depend on the seed only."""
    g = torch.Generator().manual_seed(seed)
    Y, noise = normal(M, N, g=g), 0.3 * normal(steps, M, N, g=g)
    L, right_leaf = left.clone().requires_grad_(), right.clone().requires_grad_()
    optimizer = make([FactorPair(L, right_leaf)])
    products = []
    for k in range(steps):
        optimizer.zero_grad()
        (0.5 * (L @ right_leaf.T - Y - noise[k]).square().sum()).backward()
        optimizer.step()
        if mid_run is not None and k % 13 == 7:
            new = regauged(L.detach(), right_leaf.detach(), mid_run)
            L.data.copy_(new[0])
            right_leaf.data.copy_(new[1])
        products.append((L @ right_leaf.T).detach())
    return torch.stack(products)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


def start(seed: int, zero: bool) -> tuple[Tensor, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    return normal(M, R, g=g) * (0.0 if zero else 1.0), normal(N, R, g=g), g


@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
@given(seed=SEEDS, condition=st.sampled_from([1.0, 5.0, 100.0]), zero=st.booleans())
@settings(max_examples=5)
def test_path_does_not_depend_on_gauge(make, seed, condition, zero):
    L0, R0, g = start(seed, zero)
    expected = path(make, L0, R0, seed)
    got = path(make, *regauged(L0, R0, gauge(condition, g)), seed)
    assert difference(expected, got) <= 1e-12


@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
@given(seed=SEEDS)
@settings(max_examples=5)
def test_path_survives_refactorisation_mid_run(make, seed):
    L0, R0, g = start(seed, zero=False)
    expected = path(make, L0, R0, seed)
    assert difference(expected, path(make, L0, R0, seed, mid_run=gauge(5.0, g))) <= 1e-12


@pytest.mark.parametrize("make", NOT_INVARIANT.values(), ids=NOT_INVARIANT)
def test_checker_catches_methods_that_depend_on_gauge(make):
    L0, R0, g = start(0, zero=False)
    got = path(make, *regauged(L0, R0, gauge(5.0, g)), 0)
    assert difference(path(make, L0, R0, 0), got) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
def test_gauge_changes_little_in_low_precision(make, dtype):
    L0, R0, _ = start(3, zero=False)
    a = path(make, L0.to(dtype).float(), R0.to(dtype).float(), 3, steps=10)
    b = path(make, L0.to(dtype), R0.to(dtype), 3, steps=10)
    assert difference(a.double(), b.double()) <= 20 * torch.finfo(dtype).eps * 10


def one_pair(seed: int, *, scale: float = 1.0, core: Tensor | None = None):
    """Return a pair with gradients of <G, W>, and G."""
    g = torch.Generator().manual_seed(seed)
    L, right = normal(M, R, g=g).requires_grad_(), normal(N, R, g=g).requires_grad_()
    pair, G = FactorPair(L, right, scale=scale, core=core), normal(M, N, g=g)
    (G * (pair.times_core(L) @ right.T)).sum().backward()
    return pair, G


def change(pair: FactorPair, d_left: Tensor, d_right: Tensor) -> Tensor:
    L, right = pair.left.detach(), pair.right.detach()
    return pair.times_core(d_left) @ right.T + pair.times_core(L) @ d_right.T


CORES = {
    "none": lambda g: None,
    "diagonal": lambda g: normal(R, g=g).abs() + 0.1,
    "full": lambda g: normal(R, R, g=g),
}


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
@pytest.mark.parametrize("split", ["symmetric", "zero", "sylvester"])
@given(seed=SEEDS, scale=st.sampled_from([0.01, 1.0, 30.0]))
@settings(max_examples=10)
def test_pro_direction_is_the_projected_full_gradient(core, split, seed, scale):
    pair, G = one_pair(seed, scale=scale, core=core(torch.Generator().manual_seed(seed)))
    P_left = pair.left.detach() @ torch.linalg.pinv(pair.left.detach())
    P_right = pair.right.detach() @ torch.linalg.pinv(pair.right.detach())
    expected = P_left @ G + G @ P_right - P_left @ G @ P_right
    q = change(pair, *tangent_direction(read_pair(pair), split))
    torch.testing.assert_close(q, expected, rtol=1e-8, atol=1e-8)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_sylvester_split_is_the_minimum_norm_solution(seed):
    pair, G = one_pair(seed, scale=2.0)
    L, right = (x.detach() * 2.0 for x in (pair.left, pair.right))
    eye_m, eye_n = torch.eye(M).double(), torch.eye(N).double()
    jacobian = torch.cat((torch.kron(eye_m, right), torch.kron(L, eye_n)), dim=1)
    solution = torch.linalg.pinv(jacobian) @ G.flatten()
    d_left, d_right = tangent_direction(read_pair(pair), "sylvester")
    torch.testing.assert_close(d_left.flatten(), solution[: M * R], rtol=1e-8, atol=1e-8)
    # The right part of the unknowns is ordered (rank, n).
    torch.testing.assert_close(d_right.T.flatten(), solution[M * R :], rtol=1e-8, atol=1e-8)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_scaled_gd_moves_along_both_projections(seed):
    pair, G = one_pair(seed)
    P_left = pair.left.detach() @ torch.linalg.pinv(pair.left.detach())
    P_right = pair.right.detach() @ torch.linalg.pinv(pair.right.detach())
    old = [pair.left.detach().clone(), pair.right.detach().clone()]
    ScaledGD([pair], lr=1e-3, trust=float("inf")).step()
    d_left, d_right = pair.left.detach() - old[0], pair.right.detach() - old[1]
    moved = d_left @ old[1].T + old[0] @ d_right.T
    torch.testing.assert_close(moved, -1e-3 * (P_left @ G + G @ P_right), rtol=1e-9, atol=1e-12)


@given(seed=SEEDS, lr=st.sampled_from([1e-3, 0.1, 10.0]))
@settings(max_examples=10)
def test_spectral_descent_bounds_each_part(seed, lr):
    pair, G = one_pair(seed)
    old = [pair.left.detach().clone(), pair.right.detach().clone()]
    SpectralDescent([pair], lr=lr, trust=float("inf")).step()
    parts = (
        (pair.left.detach() - old[0]) @ old[1].T,
        old[0] @ (pair.right.detach() - old[1]).T,
    )
    norms = [float(torch.linalg.matrix_norm(x, 2)) for x in parts]
    assert [lr / 2, lr / 2] == pytest.approx(norms, rel=1e-9)
    frames = [torch.linalg.qr(x).Q for x in old]
    nuclear = torch.linalg.matrix_norm(G @ frames[1], "nuc") + torch.linalg.matrix_norm(
        frames[0].T @ G, "nuc"
    )
    assert float(-lr / 2 * nuclear) == pytest.approx(float((G * sum(parts)).sum()), rel=1e-8)


@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
@given(seed=SEEDS, lr=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]), trust=st.floats(0.01, 1.0))
@settings(max_examples=5)
def test_second_order_change_is_damped(make, seed, lr, trust):
    pair, _ = one_pair(seed)
    pair.left.data.mul_(1e-6)
    old = [pair.left.detach().clone(), pair.right.detach().clone()]
    optimizer = make([pair])
    optimizer.param_groups[0] |= {"lr": lr, "trust": trust, "weight_decay": 0.0}
    optimizer.step()
    d_left, d_right = pair.left.detach() - old[0], pair.right.detach() - old[1]
    first = max((d_left @ old[1].T).norm(), (old[0] @ d_right.T).norm())
    # The factors move by rounded steps: their difference is exact to eps of the factors.
    assert float((d_left @ d_right.T).norm()) <= trust * float(first) * (1 + 1e-6)
