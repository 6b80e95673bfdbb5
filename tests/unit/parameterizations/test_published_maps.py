"""Maps against their published formulas, written anew: nested NoRA, LoRA-XS, and their kin."""

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NoRightInverseError, OptionError

W0 = np.random.default_rng(0).standard_normal((9, 7))
WEIGHT = torch.from_numpy(W0)
D = np.geomspace(0.01, 10.0, 7)


def array(x):
    return x.detach().double().numpy()


def parts(module, form):
    """The inner factors b and a of a NoRA."""
    inner = module.inner if isinstance(module.inner, lo.Factored) else module.inner.inner
    return array(inner.left), array(inner.right).T


def filled(module, seed=1):
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
    return module


def outer(split, k, d=None):
    S = np.eye(7) if d is None else np.diag(d)
    U, s, Vt = np.linalg.svd(W0 @ S, full_matrices=False)
    U, s, A = U[:, :k], s[:k], Vt[:k] @ np.linalg.inv(S)
    left = {"left": s, "sqrt": np.sqrt(s)}.get(split, np.ones(k))
    right = {"right": s, "sqrt": np.sqrt(s)}.get(split, np.ones(k))
    return U * left, right[:, None] * A


@pytest.mark.parametrize("split", ["none", "left", "right", "sqrt"])
@pytest.mark.parametrize("d", [None, D])
@pytest.mark.parametrize("form", ["serial", "parallel"])
def test_nora_is_the_published_product(split, d, form):
    scale = None if d is None else torch.from_numpy(d)
    module = filled(
        lo.nora(
            WEIGHT, 2, outer_rank=4, split=split, activation_scale=scale, form=form, scaling=1.7
        )
    )
    b, a = parts(module, form)
    B, A = outer(split, 4, d)
    # Singular vectors come in pairs of free sign; the inner factors belong to one choice.
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1).T
    got = array(module().to_dense())
    far = [
        np.abs(1.7 * (B * s) @ b @ a @ (A * s[:, None] if form == "serial" else np.eye(7)) - got)
        for s in signs
    ]
    assert min(x.max() for x in far) < 1e-11


def test_nora_reproduces_the_weight_where_activations_are_large():
    """Relative error of the layer's output, with the inner product at the identity."""
    rng = np.random.default_rng(1)
    d = np.geomspace(1e-3, 10, 40)
    weight = rng.standard_normal((30, 40))
    X = rng.standard_normal((200, 40)) * d
    module = lo.nora(
        torch.from_numpy(weight), 20, outer_rank=20, activation_scale=torch.from_numpy(d)
    )
    inner = module.inner
    inner.left.data, inner.right.data = torch.eye(20).double(), torch.eye(20).double()
    outputs, got = X @ weight.T, X @ array(module().to_dense()).T
    U, s, Vt = np.linalg.svd(weight * d, full_matrices=False)
    best = X @ ((U[:, :20] * s[:20]) @ Vt[:20] / d).T
    error, least = (np.linalg.norm(outputs - y) / np.linalg.norm(outputs) for y in (got, best))
    assert error == pytest.approx(least, rel=1e-9)
    assert error < 0.1


def test_random_start_is_random_on_both_sides():
    one = lo.nora(WEIGHT, 2, outer_rank=4, start="random")
    assert float(one().detach().schatten_norm(2)) > 1e-3
    assert not lo.nora(WEIGHT, 2, outer_rank=4)().to_dense().any()


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 1.0), (12.0, 4.0)])
@pytest.mark.parametrize("absorb", [True, False])
def test_lora_xs_is_the_published_product(alpha, scaling, absorb):
    module = filled(lo.lora_xs(WEIGHT, 3, alpha=alpha, absorb_sigma=absorb))
    R = array(next(module.parameters()))
    U, V = (array(x) for x in (module.outer_left, module.outer_right))
    s = np.linalg.svd(W0)[1][:3] if absorb else np.ones(3)
    expected = scaling * U @ R @ np.diag(s) @ V.T
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-12)


def test_lora_xs_starts_as_published():
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 50)))
    g = torch.Generator().manual_seed(0)
    R = next(lo.lora_xs(weight, 40, start_std=1e-5, generator=g).parameters())
    assert float(R.detach().std()) == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"start_std": -1.0}])
def test_lora_xs_refuses_bad_numbers(options):
    with pytest.raises(OptionError, match="must be positive and finite"):
        lo.lora_xs(WEIGHT, 2, **options)


@pytest.mark.parametrize("radius", [None, 0.8])
def test_full_cores_are_the_published_product(radius):
    module = filled(lo.polar((9, 7), 3, radius=radius, dtype=torch.float64))
    U, V = (array(x) for x in module.frames())
    S = array(module.values)
    if radius is not None:
        S = radius * 2 * S @ np.linalg.inv(np.eye(3) + S.T @ S)
    np.testing.assert_allclose(array(module().to_dense()), U @ S @ V.T, atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-13)
    assert module.feasible_set.contains(module().detach())


def test_stella_moves_all_of_its_core_from_zero():
    module = lo.stella((9, 7), 3, dtype=torch.float64)
    assert not module().to_dense().any()
    (module().to_dense() * WEIGHT).sum().backward()
    U, V = module.frames()
    torch.testing.assert_close(module.values.grad, (U.mT @ WEIGHT @ V).detach())


def test_a_gradient_step_on_frames_is_a_riemannian_one():
    """G - U sym(U^T G) on each side, and back to the manifold by polar factors."""
    module = filled(lo.stella((9, 7), 3, dtype=torch.float64))
    U, V = (np.linalg.qr(array(x))[0] for x in (module.left, module.right))
    S = array(module.values).copy()
    module.left.data, module.right.data = torch.tensor(U), torch.tensor(V)
    (module().to_dense() * WEIGHT).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    got = [*map(array, module.frames()), array(module.values)]
    for Q, G, moved in zip((U, V), (W0 @ V @ S.T, W0.T @ U @ S), got[:2], strict=True):
        step = G - Q @ (Q.T @ G + G.T @ Q) / 2
        X, _, Yt = np.linalg.svd(Q - 0.1 * step, full_matrices=False)
        np.testing.assert_allclose(moved, X @ Yt, atol=1e-12)
    np.testing.assert_allclose(got[2], S - 0.1 * U.T @ W0 @ V, atol=1e-12)


def test_normalized_lora_is_the_published_product():
    module = filled(lo.NormalizedLoRA((9, 7), 3, scaling=2.0, dtype=torch.float64))
    A = array(module.right).T
    expected = 2.0 * array(module.left) @ (A / np.linalg.norm(A, axis=0))
    np.testing.assert_allclose(array(module().to_dense()), expected, atol=1e-13)


def test_normalized_start_alone_is_plain_lora():
    module = lo.NormalizedLoRA((9, 7), 3, every_step=False, dtype=torch.float64)
    np.testing.assert_allclose(np.linalg.norm(array(module.right), axis=1), np.ones(7), atol=1e-14)
    got = module.assign(WEIGHT, project=True)().to_dense()
    U, s, Vt = np.linalg.svd(W0)
    np.testing.assert_allclose(array(got), (U[:, :3] * s[:3]) @ Vt[:3], atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_normalized_lora_reaches_one_rank_less(k):
    target = lo.LowRankOperator.from_dense(WEIGHT, max(k, 1)) * float(k > 0)
    module = lo.NormalizedLoRA((9, 7), 3, dtype=torch.float64).assign(target)
    np.testing.assert_allclose(array(module().to_dense()), array(target.to_dense()), atol=1e-12)


def test_normalized_lora_refuses_its_full_rank():
    with pytest.raises(NoRightInverseError, match="must have rank at most 2; got 3"):
        lo.NormalizedLoRA((9, 7), 3, dtype=torch.float64).assign(WEIGHT, project=True)


def test_zero_start_resets_a_learned_radius():
    module = lo.DeLoRA((5, 4), 2, radius=2.0, learn_radius=True)
    with torch.no_grad():
        module.learned_radius.fill_(7.0)
    assert 2.0 == float(module.zero_().learned_radius)
