"""Optimizers against their published formulas, written anew in dense matrices and plain loops.

W = s B A as in the papers: B is m x r, A is r x n; gB = s G A^T and gA = s B^T G.
"""

import math

import pytest
import torch

from lowrank_opt.training import (
    FactorPair,
    LoRAProAdamW,
    LoRAProFull,
    LoRARite,
    ScaledGD,
    SpectralDescent,
)
from tests.builders import normal

M, N, R, S = 9, 7, 3, 1.7
STEPS = 40


def start(gauge=None):
    B, A = normal(M, R, seed=0), normal(R, N, seed=1)
    return (B, A) if gauge is None else (B @ gauge, torch.linalg.solve(gauge, A))


def gradient(W, step, size=1.0):
    """That of a quadratic loss, with noise that depends on the step only."""
    return size * (W - normal(M, N, seed=2) + 0.3 * normal(M, N, seed=100 + step))


def run(optimizer, steps=STEPS, gauge=None, size=1.0, **options):
    B, A = (x.clone().requires_grad_() for x in start(gauge))
    ours = optimizer([FactorPair(B, A, scale=S, layout="peft")], **options)
    for step in range(steps):
        G = gradient((S * B @ A).detach(), step, size)
        B.grad, A.grad = S * G @ A.detach().mT, S * B.detach().mT @ G
        ours.step()
    return (S * B @ A).detach()


def sylvester(B, A, gA):
    """Solve B^T B X + X A A^T = -(1/s^2) (B^T B)^-1 gA A^T as one linear system."""
    P, Q = B.mT @ B, A @ A.mT
    eye = torch.eye(R, dtype=torch.float64)
    C = -torch.linalg.inv(P) @ gA @ A.mT / S**2
    system = torch.kron(P, eye) + torch.kron(eye, Q.mT.contiguous())
    return torch.linalg.solve(system, C.flatten()).view(R, R)


def directions(B, A, gB, gA, X):
    """Theorem 2.1: the family of optimal directions."""
    inner, outer = torch.linalg.inv(B.mT @ B), torch.linalg.inv(A @ A.mT)
    a = inner @ gA / S**2 + X @ A
    b = (torch.eye(M, dtype=torch.float64) - B @ inner @ B.mT) @ gB @ outer / S**2 - B @ X
    return b, a


def lora_pro_full(lr, weight_decay=0.0, gauge=None):
    (B, A), zero = start(gauge), torch.zeros(R, R, dtype=torch.float64)
    m, v = torch.zeros(M, N, dtype=torch.float64), torch.zeros(M, N, dtype=torch.float64)
    for step in range(STEPS):
        G = gradient(S * B @ A, step)
        b, a = directions(B, A, S * G @ A.mT, S * B.mT @ G, zero)
        q = S * B @ a + S * b @ A
        m, v = 0.9 * m + 0.1 * q, 0.999 * v + 0.001 * q * q
        D = m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        gB, gA = S * D @ A.mT, S * B.mT @ D
        b, a = directions(B, A, gB, gA, sylvester(B, A, gA))
        B = (1 - lr * weight_decay) * B - lr * b
        A = (1 - lr * weight_decay) * A - lr * a
    return S * B @ A


def rite(lr, clip=None, skip=None, size=1.0):
    """The listing of Algorithm 1 with the clip and skip of the authors' code; scale s in G."""
    B, A = start()
    X = {"l": B, "r": A.mT.clone()}
    eye = torch.eye(R, dtype=torch.float64)
    V = {k: torch.zeros(R, R, dtype=torch.float64) for k in "lr"}
    mean = {k: torch.zeros_like(X[k]) for k in "lr"}
    old = {k: torch.zeros_like(X[k]) for k in "lr"}
    for t in range(1, STEPS + 1):
        G = gradient(S * X["l"] @ X["r"].mT, t - 1, size)
        grads = {"l": S * G @ X["r"], "r": S * G.mT @ X["l"]}
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.9, 0.999))
        U, K = {}, {}
        for k, other in (("l", "r"), ("r", "l")):
            U[k], K[k] = torch.linalg.qr(S * X[other])
        h = {k: grads[k] @ torch.linalg.inv(K[k]) for k in "lr"}
        if skip is not None:
            h = {k: x if x.square().mean().sqrt() <= skip else 0 * x for k, x in h.items()}
        if clip is not None:
            norm = math.sqrt(sum(float(x.square().sum()) for x in h.values()))
            h = {k: x * min(1.0, clip / norm) if norm else x for k, x in h.items()}
        delta = {}
        for k in "lr":
            P = U[k].mT @ old[k] if t > 1 else eye
            V[k] = b2 * P @ V[k] @ P.mT + (1 - b2) * h[k].mT @ h[k] / len(h[k])
            w, Q = torch.linalg.eigh(V[k])
            root = Q @ torch.diag(1 / (w.clamp_min(0).sqrt() + 1e-6)) @ Q.mT
            mean[k] = b1 * mean[k] @ P.mT + (1 - b1) * h[k] @ root
            delta[k] = mean[k] @ torch.linalg.inv(K[k]).mT
        X = {k: X[k] - lr * delta[k] for k in "lr"}
        # Frames belong to the other factor: U["l"] spans the right one.
        old = {k: U[k] for k in "lr"}
    return S * X["l"] @ X["r"].mT


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_lora_pro_full_is_the_published_algorithm(weight_decay):
    ours = run(LoRAProFull, lr=0.02, weight_decay=weight_decay)
    assert distance(ours, lora_pro_full(0.02, weight_decay)) < 1e-11


def test_lora_pro_full_is_not_the_efficient_mode():
    assert distance(run(LoRAProAdamW, lr=0.02), lora_pro_full(0.02)) > 0.05


def test_a_change_of_gauge_moves_lora_pro_full_in_second_order_only():
    gauge = torch.diag(torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64))
    moved = [distance(run(LoRAProFull, lr=lr, gauge=gauge), run(LoRAProFull, lr=lr))
             for lr in (0.004, 0.002)]  # fmt: skip
    efficient = distance(run(LoRAProAdamW, lr=0.004, gauge=gauge), run(LoRAProAdamW, lr=0.004))
    assert moved[0] < efficient / 10
    # Half the rate, half the distance over the same number of steps, of a step's square each.
    assert moved[1] < 0.35 * moved[0]


def test_lora_pro_full_starts_from_a_zero_factor():
    B, A = torch.zeros(M, R, dtype=torch.float64), normal(R, N, seed=1)
    G = normal(M, N, seed=5)
    q = S * (G @ A.mT @ torch.linalg.inv(A @ A.mT)) @ A / S
    D = q / (q.abs() + 1e-8)
    expected = B - 0.1 * (S * D @ A.mT) @ torch.linalg.inv(A @ A.mT) / S**2
    B.requires_grad_(), A.requires_grad_()
    optimizer = LoRAProFull([FactorPair(B, A, scale=S, layout="peft")], lr=0.1)
    B.grad, A.grad = S * G @ A.detach().mT, torch.zeros_like(A)
    optimizer.step()
    torch.testing.assert_close(B.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("clip", "skip", "size"),
    [(None, None, 1.0), (0.5, None, 1.0), (None, 1.0, 0.7), (0.5, 1.0, 0.7)],
)
def test_rite_is_the_published_algorithm(clip, skip, size):
    ours = run(LoRARite, lr=0.05, trust=math.inf, clip=clip, skip=skip, size=size)
    assert distance(ours, rite(0.05, clip, skip, size)) < 1e-10


def test_skip_freezes_a_loss_that_is_a_sum():
    still = run(LoRARite, lr=0.05, skip=1.0, size=1e3)
    assert distance(still, S * torch.matmul(*start())) < 1e-15


def test_clip_of_rite_does_not_depend_on_the_gauge():
    gauge = torch.diag(torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64))
    one, other = (run(LoRARite, lr=0.05, clip=0.5, gauge=x) for x in (None, gauge))
    assert distance(one, other) < 1e-10


def inverse_root(x):
    w, Q = torch.linalg.eigh(x)
    return Q @ torch.diag(w.rsqrt()) @ Q.mT


def msign(x):
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    return U @ Vh


def lora_muon(lr, weight_decay):
    """Split weight decay: k A + dA / k, and likewise B, with k^2 = 1 - lr wd."""
    (B, A), k = start(), math.sqrt(1 - lr * weight_decay)
    for step in range(STEPS):
        G = gradient(S * B @ A, step)
        # Factors of W, the scale in the second one.
        L, R = B, S * A.mT
        P, Q = inverse_root(L.mT @ L), inverse_root(R.mT @ R)
        dL, dR = -lr / 2 * msign(G @ R @ Q) @ Q, -lr / 2 * msign(G.mT @ L @ P) @ P
        B, A = k * B + dL / k, k * A + dR.mT / (S * k)
    return S * B @ A


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_spectral_descent_without_momentum_is_lora_muon(weight_decay):
    options = {"lr": 0.05, "momentum": 0.0, "trust": math.inf, "weight_decay": weight_decay}
    assert distance(run(SpectralDescent, **options), lora_muon(0.05, weight_decay)) < 1e-12


@pytest.mark.parametrize("weight_decay", [0.0, 3.0, 9.9])
def test_decay_leaves_the_first_order_of_a_step(weight_decay):
    """W = (1 - lr wd) W0 + dL R0 + L0 dR + the second order, which is over 1 - lr wd."""
    B, A = start()
    lr = 0.1
    got = run(ScaledGD, 1, lr=lr, trust=math.inf, weight_decay=weight_decay)
    plain = run(ScaledGD, 1, lr=lr, trust=math.inf)
    half = run(ScaledGD, 1, lr=lr / 2, trust=math.inf)
    W, keep = S * B @ A, 1 - lr * weight_decay
    # Two step lengths tell both orders of a step apart.
    second = 2 * (plain - 2 * half + W)
    first = plain - W - second
    torch.testing.assert_close(got, keep * W + first + second / keep, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("decay", "power"), [("product", 1), ("factors", 2)])
def test_decay_shrinks_what_it_says(decay, power):
    B, A = (x.requires_grad_() for x in start())
    optimizer = ScaledGD([FactorPair(B, A, layout="peft")], lr=0.1, weight_decay=2.0, decay=decay)
    before = (B @ A).detach()
    B.grad, A.grad = torch.zeros_like(B), torch.zeros_like(A)
    optimizer.step()
    torch.testing.assert_close((B @ A).detach(), 0.8**power * before, rtol=1e-13, atol=0)


def test_unknown_decay_is_refused():
    B, A = (x.requires_grad_() for x in start())
    with pytest.raises(ValueError, match=r"decay must be one of .* got decay='half'"):
        ScaledGD([FactorPair(B, A, layout="peft")], decay="half")
