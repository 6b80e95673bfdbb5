"""The column "agrees with" of the table of methods: every map against its published formula."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.example import example_tensor
from lowrank_opt.parameterizations.published.agreement import AGREEMENT

SHAPE, RANK = (14, 13), 3
W0 = example_tensor(*SHAPE).numpy()


def array(x):
    return x.detach().double().numpy()


def filled(name):
    (example,) = (e for e in examples() if e.name == name)
    module = example.make(SHAPE, RANK, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module


def unit(x):
    return x / np.linalg.norm(x, axis=0)


def orthonormal(x):
    U, _, Vt = np.linalg.svd(x, full_matrices=False)
    return U @ Vt


def svd_form(m):
    return orthonormal(array(m.left)), array(m.values), orthonormal(array(m.right))


def product(m):
    return m.scaling * array(m.left) @ array(m.right).T


def components(m):
    return m.scaling * (array(m.left) * array(m.values)) @ array(m.right).T


def core_of(m):
    while hasattr(m, "inner"):
        m = m.inner
    return m


def lora_xs(m):
    U, V = array(m.outer_left), array(m.outer_right)
    return U @ array(core_of(m).matrix) @ np.diag(np.linalg.svd(W0)[1][:RANK]) @ V.T


def nora(m):
    U, V = array(m.outer_left), array(m.outer_right)
    sigma = np.diag(np.linalg.svd(W0)[1][: U.shape[1]])
    return U @ sigma @ product(core_of(m)) @ V.T


def started(m, first):
    return product(m.inner) - first


def leading():
    U, s, Vt = np.linalg.svd(W0)
    return (U[:, :RANK] * s[:RANK]) @ Vt[:RANK]


def thin_qr():
    Q, T = np.linalg.qr(W0)
    return Q[:, :RANK] @ T[:RANK]


def capped(m):
    U, Z, V = svd_form(m)
    return U @ (2 * m.radius * Z @ np.linalg.inv(np.eye(RANK) + Z.T @ Z)) @ V.T


def in_blocks(vectors, single):
    edges = [len(vectors) * k // RANK for k in range(RANK + 1)]
    H = np.eye(len(vectors))
    for a, b in pairwise(edges):
        H[a:b, a:b] = single(unit(vectors[a:b].reshape(b - a, -1)))
    return H


def reflection(u):
    return np.eye(len(u)) - 2 * u @ u.T


def relaxed(uv):
    u, v = uv[:, :1], uv[:, 1:]
    return np.eye(len(u)) - u @ u.T + v @ v.T


def ether_plus(m):
    left, right = (in_blocks(array(x), relaxed) for x in (m.left_vectors, m.right_vectors))
    return left @ W0 @ right - W0


def homogeneous(m):
    B, A = array(m.left), array(m.right).T
    return 2 * m.radius * B @ A / (np.sum(B**2) + np.sum(A**2))


def joint_stiefel(m):
    """Equation 4: one tall Cayley frame, its upper block on the input side, W = 2 G_U S G_V^T."""
    F, n = np.vstack([array(m.right_rows), array(m.left_rows)]), SHAPE[1]
    skew = np.zeros((RANK, RANK)) if m.skew is None else array(m.skew)
    Z = skew - skew.T + F.T @ F
    M = np.linalg.inv(np.eye(RANK) + Z)
    G = np.vstack([(np.eye(RANK) - Z) @ M, -2 * F @ M])
    S = np.diag(m.bounds or [m.radius] * RANK)
    return 2 * G[n:] @ S @ G[:n].T


def complement(m):
    Q, P = array(m.left), array(m.right)
    return (np.eye(SHAPE[0]) - Q @ Q.T) @ homogeneous(m.inner) @ (np.eye(SHAPE[1]) - P @ P.T)


def dora(m):
    V = W0 + product(m.inner)
    return array(m.magnitude)[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)


def cayley(entries):
    b = round((1 + (1 + 8 * len(entries)) ** 0.5) / 2)
    S = np.zeros((b, b))
    S[np.tril_indices(b, -1)] = entries
    S = S - S.T
    return (np.eye(b) - S) @ np.linalg.inv(np.eye(b) + S)


def psoft(m):
    """The published A (R - I) B with B the leading right singular vectors and A = U Sigma."""
    V = array(m.frame)
    apart = np.linalg.svd(W0)[2][:6] @ V
    np.testing.assert_allclose(apart @ apart.T, np.eye(6), atol=1e-12)
    return (W0 @ V) @ (cayley(array(m.skew)[0, 0]) - np.eye(6)) @ V.T


def scaled_rotation(m):
    """PSOFT's B (diag(b) R diag(a) - I) A with B A the leading part of the weight."""
    B, A = array(m.outer), array(m.inner).T
    np.testing.assert_allclose(B @ A, leading(), atol=1e-12)
    R = cayley(array(m.skew))
    return B @ (np.diag(array(m.after)) @ R @ np.diag(array(m.before)) - np.eye(RANK)) @ A


def reflected(u):
    R = np.eye(len(u))
    for x in u.T:
        R = R @ (np.eye(len(u)) - 2 * np.outer(x, x) / (x @ x))
    return R


FORMULAS = {
    "AdaLoRA": components,
    "Complement(inner, left, right)": complement,
    "DeLoRA(radius)": lambda m: m.radius / RANK * unit(array(m.left)) @ unit(array(m.right)).T,
    "DynamicRank": components,
    "ETHER(weight, blocks=r)": lambda m: W0 @ in_blocks(array(m.vector), reflection) - W0,
    "ETHERPlus(weight, blocks=r)": ether_plus,
    "Factored": product,
    "HomogeneousBall(radius)": homogeneous,
    "NBLoRA(bounds)": joint_stiefel,
    "NBLoRA(radius)": joint_stiefel,
    "NormalizedLoRA": lambda m: m.scaling * array(m.left) @ unit(array(m.right).T),
    "SVDFrames": lambda m: (svd_form(m)[0] * svd_form(m)[1]) @ svd_form(m)[2].T,
    "ScaledRotation(weight, rank)": scaled_rotation,
    "VeRA": lambda m: (
        np.diag(array(m.rows)) @ array(m.frozen_left) @ np.diag(array(m.inner))
        @ array(m.frozen_right)
    ),
    "WeightDecomposed(inner, weight)": dora,
    "hra(weight, 2 r)": lambda m: W0 @ reflected(array(m.vectors)) - W0,
    "lora_xs": lora_xs,
    "nora": nora,
    "oft(weight, blocks)": lambda m: W0 @ cayley(array(m.skew)[0, 0]) - W0,
    "olora": lambda m: started(m, thin_qr()),
    "pissa": lambda m: started(m, leading()),
    "polar(radius)": capped,
    "psoft(weight, 2 r)": psoft,
    "rslora": lambda m: RANK**-0.5 * array(m.left) @ array(m.right).T,
    "stella": lambda m: svd_form(m)[0] @ svd_form(m)[1] @ svd_form(m)[2].T,
}  # fmt: skip


def test_every_number_of_the_column_is_measured():
    assert set(AGREEMENT) == set(FORMULAS)
    assert set(AGREEMENT) <= {example.name for example in examples()}


@pytest.mark.parametrize("name", FORMULAS)
def test_map_agrees_with_its_published_formula(name):
    module, expected = filled(name), None
    expected = FORMULAS[name](module)
    if isinstance(module, lo.Parameterization):
        got = array(module().to_dense())
    else:
        got = array(module.merged_dense(torch.from_numpy(W0)))
    difference = np.abs(got - expected).max() / np.abs(expected).max()
    assert difference <= AGREEMENT[name]


def test_planted_defect_is_far_from_the_formula():
    module = filled("AdaLoRA")
    module.scaling *= 1 + 1e-9
    wrong = array(module().to_dense())
    module.scaling /= 1 + 1e-9
    right = FORMULAS["AdaLoRA"](module)
    assert np.abs(wrong - right).max() > 100 * AGREEMENT["AdaLoRA"] * np.abs(right).max()
