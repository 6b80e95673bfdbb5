"""NB-LoRA: individual bounds, norm balls, every member, and the traps of its formulas."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, RadiusError
from tests.oracles import (
    FRACTIONS,
    PROFILES,
    SHAPES,
    D,
    dense,
    fill,
    fill_parallel,
    frame,
    ky_fan,
    matrix,
    normal,
    schatten,
    singular_values,
    tolerance,
    zero_start_gradient,
)

# Options, and how far singular values exceed the set they declare, as a function written here.
KINDS = {
    "spectral": ({"radius": 0.7}, lambda s: max(s) - 0.7),
    "spectral with skew": ({"radius": 0.7, "skew": True}, lambda s: max(s) - 0.7),
    "nuclear": ({"radius": 0.7, "p": 1}, lambda s: schatten(s, 1) - 0.7),
    "p=1.5": ({"radius": 0.7, "p": 1.5}, lambda s: schatten(s, 1.5) - 0.7),
    "frobenius": ({"radius": 0.7, "p": 2}, lambda s: schatten(s, 2) - 0.7),
    "p=40": ({"radius": 0.7, "p": 40}, lambda s: schatten(s, 40) - 0.7),
    "ky fan": ({"radius": 0.7, "ky_fan": 2}, lambda s: ky_fan(s, 2) - 0.7),
    "bounds": ({"bounds": [0.2, 0.7, 0.4]}, lambda s: max(s[:3] - [0.7, 0.4, 0.2])),
    "zero bounds": ({"bounds": [0.7, 0.0, 0.0]}, lambda s: max(s[:3] - [0.7, 0.0, 0.0])),
}
every_kind = pytest.mark.parametrize(("options", "excess"), KINDS.values(), ids=KINDS)
NORM_BALLS = {k: v for k, v in KINDS.items() if "bounds" not in k}


@every_kind
@pytest.mark.parametrize("size", [0.0, 1e-160, 1e-30, 1.0, 100.0, 1e4, 1e8, 1e150, 1e307])
@pytest.mark.parametrize("fill", [fill, fill_parallel], ids=["random", "parallel"])
def test_nb_lora_never_leaves_the_set(options, excess, size, fill):
    op = fill(lo.NBLoRA((6, 5), 3, **options, dtype=D), size)()
    assert excess(singular_values(op)) <= 0.7 * tolerance(D, 3)
    assert np.linalg.matrix_rank(dense(op)) <= 3


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 100.0, 1e4])
def test_nb_lora_low_precision(options, excess, dtype, size):
    op = fill_parallel(lo.NBLoRA((6, 5), 3, **options, dtype=dtype), size)()
    assert excess(singular_values(op)) <= 0.7 * tolerance(dtype, 3)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_singular_values_stay_below_their_own_bounds(m, n, r, seed):
    bounds = np.sort(np.random.default_rng(seed).random(r))[::-1]
    op = fill(lo.NBLoRA((m, n), r, bounds=bounds.tolist(), dtype=D), seed=seed)()
    assert bool(np.all(singular_values(op)[:r] <= bounds * (1 + 1e-14)))


@pytest.mark.parametrize(("options", "excess"), NORM_BALLS.values(), ids=NORM_BALLS)
@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_nb_lora_reaches_every_member_of_a_ball(options, excess, m, n, r, profile):
    sigma = profile(r)
    gauge = excess(sigma) + 0.7
    for fraction in (0.0, 1e-9, 0.3, 1.0):
        W = matrix(m, n, 0.7 * fraction / gauge * sigma)
        layer = lo.NBLoRA((m, n), r, **options, dtype=D).assign(torch.tensor(W))
        np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=2e-14 * r)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_nb_lora_reaches_every_member_of_a_box(m, n, r, profile):
    bounds = np.linspace(2.0, 0.5, r) if r > 1 else np.array([2.0])
    for fraction in FRACTIONS:
        W = matrix(m, n, fraction * np.minimum(bounds, profile(r)))
        layer = lo.NBLoRA((m, n), r, bounds=bounds.tolist(), dtype=D).assign(torch.tensor(W))
        np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=2e-14 * r)


def test_nb_lora_reaches_the_saturated_box():
    bounds = [2.0, 1.0, 1.0, 0.0]
    W = matrix(6, 5, np.array(bounds))
    layer = lo.NBLoRA((6, 5), 4, bounds=bounds, dtype=D).assign(torch.tensor(W))
    np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=1e-13)


@every_kind
def test_nb_lora_right_inverse_stays_in_a_bounded_box(options, excess):
    layer = lo.NBLoRA((9, 8), 3, **options, dtype=D)
    layer.assign(100 * normal(9, 8), project=True)
    assert max(float(p.detach().abs().max()) for p in layer.parameters()) <= 1.01


def test_nb_lora_float32_reaches_members_to_its_precision():
    W = matrix(40, 30, np.linspace(1, 0, 8))
    layer = lo.NBLoRA((40, 30), 8, radius=1.0).assign(torch.tensor(W).float())
    np.testing.assert_allclose(dense(layer()), W, rtol=0, atol=2e-6)


def test_nb_lora_reaches_members_of_a_large_shape():
    U, V = frame(4096, 32), frame(1024, 32, seed=1)
    target = lo.LowRankOperator(*(torch.tensor(x) for x in (U, np.linspace(1, 0, 32), V)))
    layer = lo.NBLoRA((4096, 1024), 32, radius=1.0, dtype=D).assign(target)
    op = layer()
    probe = normal(1024, 3)
    torch.testing.assert_close((op @ probe).detach(), target @ probe, rtol=0, atol=1e-11)


@every_kind
@pytest.mark.parametrize(("m", "n"), [(6, 5), (3, 7), (7, 3), (3, 3)])
def test_nb_lora_starts_at_zero_with_the_published_gradient(options, excess, m, n):
    # dL/dB = -4 (dL/dW) G_V diag(s) M^T with M = (I + Z)^{-1}, sheet section 5.
    layer, G = lo.NBLoRA((m, n), 3, **options, dtype=D), normal(m, n)
    assert not dense(layer()).any()
    A = np.vstack((np.zeros((3, 3)), layer.right_rows.detach().numpy()))
    M = np.linalg.inv(np.eye(3) + A.T @ A)
    G_V = np.vstack((2 * M - np.eye(3), -2 * A[3:] @ M))
    s = layer.value_limits().detach().numpy()
    gradients = zero_start_gradient(layer, G)
    np.testing.assert_allclose(
        gradients["left_rows"], -4 * G.numpy() @ G_V * s @ M.T, rtol=0, atol=1e-13
    )
    others = [g for k, g in gradients.items() if k != "left_rows"]
    assert not any(bool(g.any()) for g in others)


def test_signed_bounds_would_leave_the_ball():
    # The counter-example of the sheet: with s = (1, -1) the product reaches 2. Hence |z|.
    G = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, -1.0], [0.0, 0.0]], dtype=D) / math.sqrt(2)
    s = torch.tensor([1.0, -1.0], dtype=D)
    torch.testing.assert_close(G.mT @ G, torch.eye(2, dtype=D))
    assert float(lo.LowRankOperator(G[2:], 2 * s, G[:2]).schatten_norm(math.inf)) == pytest.approx(
        2.0
    )


def test_learned_bounds_are_never_negative():
    layer = fill(lo.NBLoRA((5, 4), 3, radius=2.0, p=1, dtype=D))
    with torch.no_grad():
        layer.spread.copy_(torch.tensor([-1.0, 2.0, -1.0]))
    expected = torch.tensor([0.5, 1.0, 0.5], dtype=D)
    torch.testing.assert_close(layer.value_limits().detach(), expected)


def test_equal_learned_bounds_are_a_small_spectral_ball():
    # With the bounds left equal no singular value exceeds radius / r: not the nuclear ball.
    layer = lo.NBLoRA((6, 5), 3, radius=3.0, p=1, dtype=D)
    for_each = torch.ones(3, dtype=D)
    torch.testing.assert_close(layer.value_limits().detach(), for_each)
    rank_one = torch.tensor(matrix(6, 5, np.array([3.0])))
    layer.assign(rank_one)
    torch.testing.assert_close(layer.value_limits().detach(), 3.0 * torch.eye(1, 3).double()[0])
    assert lo.NBLoRA((6, 5), 3, radius=1.0).feasible_set.excess(layer()) == pytest.approx(2.0)


def test_component_at_zero_gets_no_gradient():
    layer = fill(lo.NBLoRA((5, 4), 2, radius=1.0, p=1, dtype=D))
    with torch.no_grad():
        layer.spread[1] = 0.0
    layer().to_dense().square().sum().backward()
    assert 0.0 == float(layer.spread.grad[1])


def test_radial_derivative_vanishes_at_the_boundary():
    # sigma = s sin(2 theta) folds at theta = pi / 4: a smooth map onto a closed set must.
    W = torch.tensor(matrix(5, 4, np.array([0.7, 0.7])))
    layer = lo.NBLoRA((5, 4), 2, radius=0.7, dtype=D).assign(W)
    (layer().to_dense() * W).sum().backward()
    # The angle of a saturated value is known to sqrt(eps) only.
    assert max(float(p.grad.abs().max()) for p in layer.parameters()) <= 1e-7


@pytest.mark.parametrize(("m", "n", "r"), [(5, 4, 2), (6, 5, 3)])
def test_jacobian_has_the_dimension_of_the_manifold(m, n, r):
    layer = fill(lo.NBLoRA((m, n), r, bounds=np.linspace(2, 1, r).tolist(), dtype=D))
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    jacobian = torch.func.jacrev(lambda d: torch.func.functional_call(layer, d, ()).to_dense())(
        parameters
    )
    columns = torch.cat([j.reshape(m * n, -1) for j in jacobian.values()], dim=1).numpy()
    assert (m + n - r) * r == np.linalg.matrix_rank(columns, tol=1e-9)


@every_kind
@pytest.mark.parametrize(("dtype", "atol"), [(D, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_rebase_keeps_the_matrix_and_bounds_the_parameters(options, excess, dtype, atol):
    layer = fill(lo.NBLoRA((7, 6), 3, **options, dtype=dtype), 100.0)
    before = dense(layer())
    layer.rebase()
    np.testing.assert_allclose(dense(layer()), before, rtol=0, atol=atol)
    free = {k: float(p.detach().abs().max()) for k, p in layer.named_parameters() if k != "spread"}
    assert max(free.values()) <= 1.01


GRADCHECKED = {
    k: KINDS[k] for k in ("spectral", "spectral with skew", "nuclear", "p=1.5", "ky fan", "bounds")
}


@pytest.mark.parametrize(("options", "excess"), GRADCHECKED.values(), ids=GRADCHECKED)
def test_nb_lora_gradcheck(options, excess):
    layer = fill(lo.NBLoRA((4, 4), 3, **options, dtype=D))
    names = [k for k, _ in layer.named_parameters()]

    def value(*tensors):
        return torch.func.functional_call(
            layer, dict(zip(names, tensors, strict=True)), ()
        ).to_dense()

    assert torch.autograd.gradcheck(value, tuple(layer.parameters()))


@every_kind
@pytest.mark.parametrize("size", [0.0, 1e-160, 1e-30, 1e4, 1e8, 1e100])
def test_nb_lora_gradients_are_finite(options, excess, size):
    layer = fill_parallel(lo.NBLoRA((6, 5), 3, **options, dtype=D), size)
    gradients = zero_start_gradient(layer, normal(6, 5))
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"radius": 0.0}, RadiusError, r"radius must be positive and finite; got radius=0\.0"),
        ({"radius": -1.0}, RadiusError, r"got radius=-1\.0"),
        ({"radius": math.nan}, RadiusError, r"got radius=nan"),
        ({"radius": math.inf}, RadiusError, r"got radius=inf"),
        ({"radius": 1.0, "p": 0.5}, RadiusError, r"order p must be in \[1, inf\]; got p=0\.5"),
        ({"radius": 1.0, "p": math.nan}, RadiusError, r"got p=nan"),
        (
            {"bounds": [1.0, 2.0]},
            OptionError,
            r"bounds replaces radius, p and ky_fan and needs rank=3 values; got 2",
        ),
        ({"bounds": [1.0, 2.0, 3.0], "radius": 1.0}, OptionError, r"bounds replaces radius"),
        ({"bounds": [1.0, 2.0, 3.0], "ky_fan": 1}, OptionError, r"bounds replaces radius"),
        ({"bounds": [1.0, -2.0, 3.0]}, RadiusError, r"bounds must be nonnegative and finite"),
        ({"bounds": [0.0, 0.0, 0.0]}, RadiusError, r"with a positive one"),
        (
            {"radius": 1.0, "p": 2, "skew": False},
            OptionError,
            r"skew=False reaches all members only for the spectral",
        ),
        (
            {"bounds": [1.0, 2.0, 3.0], "skew": False},
            OptionError,
            r"skew=False reaches all members only",
        ),
    ],
    ids=str,
)
def test_nb_lora_refuses_bad_bounds(options, error, message):
    with pytest.raises(error, match=message) as caught:
        lo.NBLoRA((5, 4), 3, **options)
    assert error is caught.type


def test_target_outside_is_refused_with_its_excess():
    layer = lo.NBLoRA((5, 4), 3, radius=0.5, dtype=D)
    with pytest.raises(
        NotInSetError, match=r"exceeds it by 1\.50e\+00: pass project=True"
    ) as caught:
        layer.assign(torch.tensor(matrix(5, 4, np.array([2.0, 1.0]))))
    assert caught.value.excess == pytest.approx(1.5, rel=1e-12)
