"""DeLoRA: exactly the nuclear ball; what the published variants really cover."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import (
    NoRightInverseError,
    NotInSetError,
    OptionError,
    RadiusError,
    ShapeError,
)
from lowrank_opt.parameterizations.balls.delora import equal_diagonal_rotation
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

COLUMN_NORMS = torch.tensor([1.0, 3.0, 0.5, 2.0, 0.1], dtype=D)


def units(x):
    x = x.detach().double().numpy()
    return x / np.linalg.norm(x, axis=0)


@pytest.mark.parametrize("r", [2, 4])
def test_delora_is_the_average_of_unit_rank_ones(r):
    layer = fill(lo.DeLoRA((6, 5), r, radius=2.0, dtype=D))
    expected = 2.0 / r * units(layer.left) @ units(layer.right).T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [0.3, 5.0])
def test_delora_caps_the_term_without_partner(size):
    layer = fill(lo.DeLoRA((6, 5), 3, radius=2.0, dtype=D))
    with torch.no_grad():
        layer.left[:, 2] *= size / layer.left[:, 2].norm()
    b, a = units(layer.left), units(layer.right)
    expected = 2.0 / 3 * b @ np.diag([1, 1, min(1.0, size)]) @ a.T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("r", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-160, 1e-30, 1.0, 1e4, 1e150, 1e307])
@pytest.mark.parametrize("fill", [fill, fill_parallel], ids=["random", "parallel"])
def test_delora_never_leaves_the_nuclear_ball(r, size, fill):
    op = fill(lo.DeLoRA((6, 5), r, radius=0.7, dtype=D), size)()
    assert schatten(singular_values(op), 1) <= 0.7 * (1 + tolerance(D, r))
    assert np.linalg.matrix_rank(dense(op)) <= r


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
def test_delora_low_precision(dtype, size):
    op = fill_parallel(lo.DeLoRA((6, 5), 3, radius=0.7, dtype=dtype), size)()
    assert schatten(singular_values(op), 1) <= 0.7 * (1 + tolerance(dtype, 3))


@pytest.mark.parametrize("variant", ["paired", "peft"])
@pytest.mark.parametrize(("m", "n", "r"), [*SHAPES, (9, 8, 7)])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_delora_reaches_every_member(variant, m, n, r, profile):
    sigma = profile(r)
    for fraction in FRACTIONS:
        W = matrix(m, n, 2.0 * fraction / sigma.sum() * sigma)
        layer = lo.DeLoRA((m, n), r, radius=2.0, variant=variant, dtype=D).assign(torch.tensor(W))
        np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=2e-14 * r)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_delora_with_column_norms_reaches_every_member(fraction):
    C = matrix(6, 5, np.array([1.2, 0.5, 0.3]) * fraction)
    W = C * COLUMN_NORMS.numpy()
    layer = lo.DeLoRA((6, 5), 3, radius=2.0, column_norms=COLUMN_NORMS, dtype=D)
    np.testing.assert_allclose(dense(layer.assign(torch.tensor(W))()), W, rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_column_norms_bound_the_weighted_nuclear_and_the_frobenius_norm(seed):
    op = fill(lo.DeLoRA((6, 5), 2, radius=2.0, column_norms=COLUMN_NORMS, dtype=D), seed=seed)()
    C = dense(op) / COLUMN_NORMS.numpy()
    assert np.linalg.norm(C, "nuc") <= 2.0 * (1 + tolerance(D, 2))
    assert np.linalg.norm(dense(op)) <= 2.0 * float(COLUMN_NORMS.max())


def test_frobenius_ball_is_not_covered():
    # sigma = 0.7 (radius, radius): Frobenius norm 0.99 radius, nuclear norm 1.4 radius.
    layer = lo.DeLoRA((6, 5), 2, radius=1.0, dtype=D)
    with pytest.raises(NotInSetError, match=r"exceeds it by 4\.00e-01") as caught:
        layer.assign(torch.tensor(matrix(6, 5, np.array([0.7, 0.7]))))
    assert caught.value.excess == pytest.approx(0.4)


@pytest.mark.parametrize(("m", "n", "r"), [*SHAPES, (9, 8, 7)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
def test_delora_starts_at_zero_exactly(m, n, r, dtype):
    layer = lo.DeLoRA((m, n), r, radius=3.0, dtype=dtype)
    assert not dense(layer()).any()
    assert not bool(layer().to_dense().any())


@pytest.mark.parametrize(("m", "n", "r"), [(6, 5, 2), (6, 5, 5), (1, 4, 1), (7, 3, 3)])
def test_delora_zero_start_gradient_is_the_closed_form(m, n, r):
    # Pairs: (radius / r) (I - b b^T) G a / |b|, equal for both b, of opposite sign for both a.
    layer, G = lo.DeLoRA((m, n), r, radius=3.0, dtype=D), normal(m, n)
    gradients = {k: g.numpy() for k, g in zero_start_gradient(layer, G).items()}
    b, a = layer.left.detach().numpy(), layer.right.detach().numpy()
    for i in range(r):
        u, v = b[:, i], a[:, i]
        along_b = 3.0 / r * G.numpy() @ v
        along_a = 3.0 / r * G.numpy().T @ u
        if i < r - r % 2:
            along_b -= u * (u @ along_b)
        along_a -= v * (v @ along_a)
        np.testing.assert_allclose(gradients["left"][:, i], along_b, rtol=0, atol=1e-14)
        np.testing.assert_allclose(gradients["right"][:, i], along_a, rtol=0, atol=1e-14)


@pytest.mark.parametrize("variant", ["paired", "paper", "author", "peft"])
@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-7, 1e4])
def test_delora_gradients_are_finite(variant, r, dtype, size):
    # Columns of 1e-40 are no directions in float32: their gradient of 1e40 would be infinite.
    layer = fill(lo.DeLoRA((6, 5), r, radius=2.0, variant=variant, dtype=dtype), size)
    gradients = zero_start_gradient(layer, normal(6, 5, dtype=dtype))
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


def adam_step(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    (layer().to_dense() * normal(*layer.shape)).sum().backward()
    optimizer.step()
    return float(np.linalg.norm(dense(layer())))


def test_peft_zero_start_survives_no_step_and_the_pairs_do():
    # 64 x 64, rank 8, strength 8: one step of 1e-3 jumps to strength / sqrt(rank) = 2.8.
    peft, paired = (
        lo.DeLoRA((64, 64), 8, radius=8.0, variant=v, dtype=D) for v in ("peft", "paired")
    )
    assert not dense(peft()).any()
    assert adam_step(peft) > 2.0
    assert 0.0 < adam_step(paired) < 0.4


def test_peft_first_gradient_is_the_inverse_clamp_too_large():
    layer, G = lo.DeLoRA((6, 5), 2, radius=2.0, variant="peft", dtype=D), normal(6, 5)
    expected = 1e4 * 2.0 / 2 * G @ torch.from_numpy(units(layer.right))
    torch.testing.assert_close(zero_start_gradient(layer, G)["left"], expected)


def test_peft_is_the_clamped_formula():
    layer = lo.DeLoRA((6, 5), 3, radius=2.0, variant="peft", dtype=D)
    with torch.no_grad():
        layer.left.copy_(normal(6, 3) * torch.tensor([1.0, 1e-5, 3e-5]))
        layer.right.copy_(normal(5, 3, seed=1) * torch.tensor([1e-5, 2.0, 1e-6]))
    b, a = layer.left.detach().numpy(), layer.right.detach().numpy()
    clamp = lambda x: np.maximum(np.linalg.norm(x, axis=0), 1e-4)  # noqa: E731
    expected = 2.0 / 3 * (b / clamp(b)) @ (a / clamp(a)).T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("variant", ["paper", "author"])
def test_frozen_copy_starts_at_zero_to_rounding(variant):
    layer = lo.DeLoRA((6, 5), 2, radius=2.0, variant=variant, dtype=D)
    np.testing.assert_allclose(dense(layer()), np.zeros((6, 5)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("variant", ["paper", "author"])
def test_frozen_copy_makes_the_bound_twice_the_radius(variant):
    # b -> -b reaches minus twice the initial sum, whose nuclear norm is almost the radius.
    layer = lo.DeLoRA((60, 50), 2, radius=2.0, variant=variant, dtype=D)
    with torch.no_grad():
        layer.left.neg_()
    op = layer()
    assert schatten(singular_values(op), 1) == pytest.approx(4.0, rel=1e-12)
    assert layer.feasible_set.contains(op)
    assert not lo.SchattenBall(1, 2.0, 4).contains(op)
    assert layer.complete is False


@pytest.mark.parametrize("variant", ["paper", "author"])
def test_frozen_copy_doubles_the_rank(variant):
    layer = fill(lo.DeLoRA((9, 8), 2, radius=2.0, variant=variant, dtype=D))
    assert 4 == np.linalg.matrix_rank(dense(layer()))
    assert 4 == layer.feasible_set.rank


@pytest.mark.parametrize("variant", ["paper", "author"])
def test_frozen_copy_shares_no_memory(variant):
    layer = lo.DeLoRA((6, 5), 2, radius=2.0, variant=variant, dtype=D)
    before = layer.frozen.clone()
    with torch.no_grad():
        layer.left.add_(1.0)
    assert torch.equal(before, layer.frozen)
    assert 0.1 < np.linalg.norm(dense(layer()))


def test_author_start_stays_zero_when_the_radius_moves_and_the_paper_one_does_not():
    layers = [
        lo.DeLoRA((6, 5), 2, radius=2.0, variant=v, learn_radius=True, dtype=D)
        for v in ("author", "paper")
    ]
    with torch.no_grad():
        for layer in layers:
            layer.learned_radius.fill_(7.0)
    author, paper = (float(np.linalg.norm(dense(layer()))) for layer in layers)
    assert author <= 1e-14 < 1.0 < paper


def test_learned_radius_removes_the_bound():
    layer = fill(lo.DeLoRA((6, 5), 2, radius=1.0, learn_radius=True, dtype=D))
    with torch.no_grad():
        layer.learned_radius.fill_(1e3)
    assert lo.RankAtMost(2) == layer.feasible_set
    assert schatten(singular_values(layer()), 1) > 100


@pytest.mark.parametrize("variant", ["paired", "author", "paper", "peft"])
def test_zero_start_gives_a_learned_radius_back(variant):
    layer = fill(lo.DeLoRA((6, 5), 2, radius=2.0, variant=variant, learn_radius=True, dtype=D))
    with torch.no_grad():
        layer.learned_radius.fill_(7.0)
    layer.zero_()
    assert 2.0 == float(layer.learned_radius.detach())
    assert np.linalg.norm(dense(layer())) <= 1e-14


def test_learned_radius_gets_a_gradient():
    layer = fill(lo.DeLoRA((6, 5), 2, radius=2.0, learn_radius=True, dtype=D))
    W = dense(layer())
    (layer().to_dense() * torch.tensor(W)).sum().backward()
    assert float(layer.learned_radius.grad) == pytest.approx(
        np.sum(W * W) / layer.learned_radius.item()
    )


@pytest.mark.parametrize(
    "options", [{"variant": "paper"}, {"variant": "author"}, {"learn_radius": True}]
)
def test_variants_without_right_inverse_say_so(options):
    layer = lo.DeLoRA((4, 3), 2, radius=1.0, **options)
    with pytest.raises(NoRightInverseError, match=r"fixed radius and no frozen copy"):
        layer.assign(torch.zeros(4, 3))


@pytest.mark.parametrize("r", [2, 3])
def test_delora_gradcheck(r):
    layer = fill(lo.DeLoRA((4, 3), r, radius=2.0, dtype=D))

    def value(left, right):
        return torch.func.functional_call(layer, {"left": left, "right": right}, ()).to_dense()

    assert torch.autograd.gradcheck(value, (layer.left, layer.right))


SPECTRA = {
    "one": [2.0],
    "zero": [0.0, 0.0, 0.0],
    "equal": [1.0, 1.0, 1.0, 1.0],
    "one of many": [5.0, 0.0, 0.0, 0.0, 0.0],
    "nearly equal": [1.0, 1.0 + 1e-15, 1.0 - 1e-15],
    "wide": [1e8, 1.0, 1e-8, 1e-300],
    "unsorted": [0.3, 4.0, 1.0, 2.0, 0.0, 0.7],
    "many": list(range(33)),
    "huge": [1e300, 1e299, 0.0],
    "tiny": [1e-300, 1e-305, 0.0],
}


@pytest.mark.parametrize("sigma", SPECTRA.values(), ids=SPECTRA)
def test_equal_diagonal_rotation(sigma):
    sigma = torch.tensor(sigma, dtype=D)
    Q = equal_diagonal_rotation(sigma)
    diagonal = (Q.mT @ torch.diag(sigma) @ Q).diagonal()
    torch.testing.assert_close(Q.mT @ Q, torch.eye(len(sigma), dtype=D), rtol=0, atol=1e-14)
    peak = float(sigma.max())
    expected = torch.full_like(sigma, peak * float((sigma / max(peak, 1e-300)).mean()))
    torch.testing.assert_close(diagonal, expected, rtol=0, atol=2e-15 * len(sigma) * peak)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_delora_refuses_bad_radius(radius):
    with pytest.raises(
        RadiusError, match=rf"radius must be positive and finite; got radius={radius}"
    ):
        lo.DeLoRA((4, 3), 2, radius=radius)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_delora_refuses_bad_column_norms(value):
    with pytest.raises(
        OptionError, match=r"column_norms must be positive and finite; got values from"
    ):
        lo.DeLoRA((4, 3), 2, radius=1.0, column_norms=torch.tensor([1.0, value, 1.0]))


@pytest.mark.parametrize("shape", [(4,), (3, 1), ()], ids=str)
def test_delora_refuses_column_norms_of_wrong_shape(shape):
    with pytest.raises(ShapeError, match=r"column_norms must have shape \(3,\)"):
        lo.DeLoRA((4, 3), 2, radius=1.0, column_norms=torch.ones(shape))


def test_delora_refuses_unknown_variant():
    with pytest.raises(OptionError, match=r"variant must be one of .*; got 'dora'"):
        lo.DeLoRA((4, 3), 2, radius=1.0, variant="dora")
