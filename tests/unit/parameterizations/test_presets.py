"""NoRA and LoRA-XS against their formulas; frames weighted by activations."""

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RankError, ShapeError
from tests.oracles import D, dense, fill, matrix, normal, zero_start_gradient

SPLITS = {
    "none": (0.0, 0.0),
    "left": (1.0, 0.0),
    "right": (0.0, 1.0),
    "sqrt": (0.5, 0.5),
}


@pytest.mark.parametrize(("split", "powers"), SPLITS.items(), ids=SPLITS)
def test_nora_is_the_published_product(split, powers):
    weight = normal(8, 6)
    layer = fill(lo.nora(weight, 2, outer_rank=4, split=split, scaling=0.5))
    U, V = layer.outer_left.numpy(), layer.outer_right.numpy()
    sigma = np.linalg.svd(weight.numpy(), compute_uv=False)[:4]
    inner = layer.inner if split == "none" else layer.inner.inner
    core = 0.5 * inner.left.detach().numpy() @ inner.right.detach().numpy().T
    rows, cols = sigma ** powers[0], sigma ** powers[1]
    expected = (U * rows) @ core @ (V * cols).T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(U.T @ weight.numpy() @ V, np.diag(sigma), rtol=0, atol=1e-13)


@pytest.mark.parametrize("absorb", [True, False])
def test_lora_xs_is_the_published_product(absorb):
    weight = normal(8, 6)
    layer = fill(lo.lora_xs(weight, 3, absorb_sigma=absorb))
    U, V = layer.outer_left.numpy(), layer.outer_right.numpy()
    R = (layer.inner.inner if absorb else layer.inner).matrix.detach().numpy()
    sigma = np.linalg.svd(weight.numpy(), compute_uv=False)[:3] if absorb else np.ones(3)
    np.testing.assert_allclose(dense(layer()), U @ R @ np.diag(sigma) @ V.T, rtol=0, atol=1e-12)


def test_lora_xs_trains_a_square_of_the_rank():
    assert 9 == sum(p.numel() for p in lo.lora_xs(normal(8, 6), 3).parameters())


@pytest.mark.parametrize("make", [lo.lora_xs, lambda w, r: lo.nora(w, r, outer_rank=4)])
def test_presets_start_at_zero_with_a_gradient(make):
    layer = make(normal(8, 6), 2)
    assert not dense(layer()).any()
    gradients = zero_start_gradient(layer, normal(8, 6, seed=1))
    assert max(float(g.norm()) for g in gradients.values()) > 0.1


@pytest.mark.parametrize("rank_of_weight", [0, 1, 3, 6])
def test_lora_xs_reaches_every_member(rank_of_weight):
    layer = lo.lora_xs(torch.tensor(matrix(8, 6, np.ones(rank_of_weight))), 3)
    W = dense(fill(layer)())
    np.testing.assert_allclose(dense(layer.assign(torch.tensor(W))()), W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_nora_reaches_every_member(split):
    layer = lo.nora(normal(8, 6), 2, outer_rank=4, split=split)
    W = dense(fill(layer)())
    np.testing.assert_allclose(dense(layer.assign(torch.tensor(W))()), W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("make", [lo.lora_xs, lambda w, r: lo.nora(w, r, outer_rank=4)])
def test_presets_stay_in_their_set_whatever_the_size_of_the_weight(make, size):
    # What rounding leaves outside the frames is of the size of W, and the core may be 1e-6 of it.
    layer = fill(make(size * normal(8, 6), 3))
    W = dense(layer())
    assert layer.feasible_set.contains(layer())
    np.testing.assert_allclose(
        dense(layer.assign(torch.tensor(W))()), W, rtol=0, atol=1e-12 * np.linalg.norm(W)
    )


def test_nora_takes_a_weight_of_low_rank():
    layer = lo.nora(torch.tensor(matrix(8, 6, np.ones(1))), 2, outer_rank=4)
    W = dense(fill(layer)())
    layer.assign(torch.tensor(W), project=True)
    # Lost singular values are raised to 1e-7 of the largest: so much conditioning is lost.
    np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=1e-8)


def test_activation_weighted_frames_minimise_the_error_of_outputs():
    # Best rank-k approximation of W in the norm |(W - X) diag(d)|: Eckart-Young after weighting.
    W, d = normal(8, 6), torch.linspace(0.1, 5, 6, dtype=D)
    U, sigma, V = lo.activation_weighted_frames(W, d, 3)
    s = np.linalg.svd(W.numpy() * d.numpy(), compute_uv=False)
    np.testing.assert_allclose(sigma, s[:3], rtol=1e-13)
    best = U @ (U.mT @ W)
    error = np.linalg.norm((W - best).numpy() * d.numpy())
    assert error == pytest.approx(np.linalg.norm(s[3:]), rel=1e-12)
    # Its rows lie in the span of V.
    np.testing.assert_allclose(best @ V @ V.mT, best, rtol=0, atol=1e-12)


def test_frames_without_weights_are_the_svd():
    U, sigma, V = lo.activation_weighted_frames(normal(8, 6), torch.ones(6), 6)
    torch.testing.assert_close(U * sigma @ V.mT, normal(8, 6))


def test_dead_inputs_do_no_harm():
    d = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0], dtype=D)
    _, sigma, V = lo.activation_weighted_frames(normal(8, 6), d, 5)
    np.testing.assert_allclose(V.mT @ V, np.eye(5), rtol=0, atol=1e-13)
    assert bool((sigma > 0).all())


@pytest.mark.parametrize(
    "scale",
    [torch.ones(5), -torch.ones(6), torch.zeros(6), torch.tensor([1.0, 1, 1, 1, 1, float("nan")])],
    ids=["length", "negative", "zero", "nan"],
)
def test_bad_activation_scale_is_refused(scale):
    with pytest.raises(ShapeError, match=r"activation_scale must be 6 finite nonnegative values"):
        lo.activation_weighted_frames(normal(8, 6), scale, 2)


@pytest.mark.parametrize("rank", [0, 7, -1])
def test_lora_xs_refuses_bad_rank(rank):
    with pytest.raises(
        RankError, match=rf"rank must be in 1\.\.6 for a 8 x 6 matrix; got rank={rank}"
    ):
        lo.lora_xs(normal(8, 6), rank)


@pytest.mark.parametrize(("rank", "outer_rank"), [(2, 7), (2, 0), (5, 4), (0, 4)])
def test_nora_refuses_bad_rank(rank, outer_rank):
    with pytest.raises(RankError, match=r"rank must be in 1\.\."):
        lo.nora(normal(8, 6), rank, outer_rank=outer_rank)


def test_nora_refuses_unknown_split():
    with pytest.raises(OptionError, match=r"split must be one of .*; got 'both'"):
        lo.nora(normal(8, 6), 2, outer_rank=4, split="both")


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (3, 2)])
def test_dense_core_is_its_parameter(m, n):
    layer = lo.DenseCore((m, n), dtype=D)
    R = normal(m, n)
    with torch.no_grad():
        layer.matrix.copy_(R)
    np.testing.assert_array_equal(dense(layer()), R.numpy())
    torch.testing.assert_close(zero_start_gradient(layer.zero_(), R)["matrix"], R)
