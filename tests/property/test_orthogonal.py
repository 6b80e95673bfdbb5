"""Orthogonal families: R is orthogonal to rounding, near the identity as promised, and reached."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, TargetError
from lowrank_opt.linalg import reflections, rotation, skew_matrices, skew_of
from lowrank_opt.nn import adapt, merge
from lowrank_opt.testing import forbid_dense
from tests.builders import normal

FAMILIES = {
    "oft": lambda W: lo.oft(W, blocks=2),
    "oft, radius": lambda W: lo.oft(W, blocks=2, radius=0.7),
    "oft, exponential": lambda W: lo.oft(W, blocks=4, map="exponential"),
    "oft, exponential, radius": lambda W: lo.oft(W, map="exponential", radius=1.3),
    "boft": lambda W: lo.boft(W, blocks=4, stages=3),
    "boft, radius": lambda W: lo.boft(W, blocks=4, stages=2, radius=0.3),
    "boft, halves": lambda W: lo.boft(W, blocks=2, stages=2, butterfly="halves"),
    "goft": lo.goft,
    "hra": lambda W: lo.hra(W, 4),
    "psoft": lambda W: lo.psoft(W, 4),
    "psoft, radius": lambda W: lo.psoft(W, 5, radius=0.5),
}
families = pytest.mark.parametrize("name", FAMILIES)


def filled(name, size=1.0, seed=1, shape=(6, 8), dtype=torch.float64):
    module = FAMILIES[name](normal(*shape, seed=3, dtype=dtype))
    with torch.no_grad():
        for k, p in enumerate(module.parameters()):
            p.copy_(size * normal(*p.shape, seed=seed + k))
    return module


@given(
    st.integers(1, 6),
    st.sampled_from(["cayley", "exponential"]),
    st.sampled_from([None, 0.01, 0.5, 1.0, 1.99]),
    st.integers(-300, 300),
    st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_every_skew_matrix_gives_a_rotation_within_the_radius(b, kind, radius, exponent, seed):
    entries = 10.0**exponent * normal(b * (b - 1) // 2, seed=seed)
    D = rotation(skew_matrices(entries, b), kind, radius).numpy()
    R = np.eye(b) + D
    assert np.linalg.norm(R.T @ R - np.eye(b), 2) < 1e-14 * max(b, 2)
    assert np.linalg.norm(D, 2) <= (2 if radius is None else radius) + 1e-14 * b
    assert np.linalg.det(R) > 0


@given(st.integers(2, 6), st.sampled_from(["cayley", "exponential"]), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_every_rotation_within_the_radius_is_reached(b, kind, seed):
    """Onto the closed set: angles up to the bound itself, repeated ones and zeros included."""
    rng = np.random.default_rng(seed)
    radius = float(rng.choice([0.1, 1.0, 1.9]))
    largest = 2 * math.asin(radius / 2)
    angles = rng.choice([0.0, largest, largest / 3, *rng.uniform(0, largest, 2)], size=b // 2)
    R = np.eye(b)
    for k, angle in enumerate(angles):
        c, s = math.cos(angle), math.sin(angle)
        R[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, -s], [s, c]]
    Q = np.linalg.qr(rng.standard_normal((b, b)))[0]
    R = torch.from_numpy(Q @ R @ Q.T)
    K = skew_of(R, kind, radius)
    assert bool(torch.isfinite(K).all())
    got = torch.eye(b) + rotation(K, kind, radius)
    torch.testing.assert_close(got, R, rtol=0, atol=1e-13)


@families
@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 1e3, 1e200])
def test_weights_keep_their_singular_values(name, size):
    module = filled(name, size)
    R = module.rotation_dense().detach()
    assert float(torch.linalg.matrix_norm(R.mT @ R - torch.eye(8), 2)) < 1e-13
    W = (module.weight + module().to_dense()).detach()
    expected = torch.linalg.svdvals(module.weight)
    torch.testing.assert_close(torch.linalg.svdvals(W), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(W, module.weight @ R, rtol=1e-11, atol=1e-12)


@families
def test_declared_set_and_distance_hold(name):
    module = filled(name, 3.0)
    D = module.rotation_dense().detach() - torch.eye(8)
    assert float(torch.linalg.matrix_norm(D, 2)) <= module.distance() + 1e-13
    assert module.distance() <= module.stages * (module.radius or 2.0) + 1e-13
    assert module.feasible_set.contains(module().detach())


@families
def test_start_is_the_identity_and_moves(name):
    module = FAMILIES[name](normal(6, 8, seed=3))
    assert not module().to_dense().any()
    (module().to_dense() * normal(6, 8, seed=4)).sum().backward()
    assert all(float(p.grad.norm()) > 1e-3 for p in module.parameters())


@families
def test_gradients_are_those_of_differences(name):
    module = filled(name, 0.4)
    G = normal(6, 8, seed=5)

    def value(*parameters):
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        op = torch.func.functional_call(module, named, ())
        return (op.to_dense() * G).sum()

    given_ = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    assert torch.autograd.gradcheck(value, given_, rtol=1e-6, atol=1e-8)


def tells(name: str, shape: tuple[int, int]) -> bool:
    """Whether the product tells the rotation: a wide weight does so for one stage of blocks."""
    narrow = shape[0] >= shape[1]
    return narrow or (name != "hra" and FAMILIES[name](normal(*shape)).stages == 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(n, s) for n in FAMILIES for s in [(6, 8), (8, 8), (12, 8)] if tells(n, s)],
)
def test_right_inverse_reproduces_what_the_map_made(name, shape):
    module = filled(name, 0.5, shape=shape)
    target = module().detach().to_dense()
    fresh = FAMILIES[name](module.weight)
    got = fresh.assign(target)().detach().to_dense()
    torch.testing.assert_close(got, target, rtol=1e-9, atol=1e-9)


@given(
    st.sampled_from([(2, 3, 8), (2, 2, 12), (3, 2, 9), (2, 4, 16), (4, 2, 16)]),
    st.sampled_from(["cayley", "exponential"]),
    st.floats(0.05, 1.4),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_products_of_strides_come_apart_into_their_own_factors(sizes, kind, radius, seed):
    """The section that is promised: every product of the map with a radius up to the root of 2."""
    b, stages, n = sizes
    options = {"blocks": n // b, "stages": stages, "map": kind, "radius": radius}
    W = normal(n + 2, n, seed=seed)
    module, again = (lo.Orthogonal(W, **options) for _ in range(2))
    with torch.no_grad():
        module.skew.copy_(normal(*module.skew.shape, seed=seed + 1))
    again.assign(module().detach())
    torch.testing.assert_close(again.turns(), module.turns(), rtol=0, atol=1e-9)


def test_products_without_a_butterfly_of_small_factors_are_refused():
    """A random rotation of eight inputs has 28 dimensions; two stages of pairs have eight."""
    W = normal(10, 8)
    R = torch.linalg.qr(normal(8, 8, seed=1)).Q
    R[:, 0] *= torch.linalg.det(R).sign()
    with pytest.raises(TargetError, match="the target must be W0 R - W0 with R of this kind"):
        lo.boft(W, blocks=4, stages=2).assign(W @ R - W)


def test_planted_defect_truncated_series_is_no_rotation():
    """The Neumann series that public code takes for the inverse: caught by the same check."""
    S = skew_matrices(0.6 * normal(6, seed=1), 4)
    eye = torch.eye(4, dtype=torch.float64)
    series = (eye - S) @ (eye - S + S @ S - S @ S @ S)
    assert float(torch.linalg.matrix_norm(series.mT @ series - eye, 2)) > 1e-2
    D = rotation(S)
    R = eye + D
    assert float(torch.linalg.matrix_norm(R.mT @ R - eye, 2)) < 1e-14


def test_cayley_is_the_published_formula():
    S = skew_matrices(normal(6, seed=1), 4)
    eye = torch.eye(4, dtype=torch.float64)
    expected = (eye - S) @ torch.linalg.inv(eye + S)
    torch.testing.assert_close(eye + rotation(S), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        eye + rotation(S, "exponential"), torch.linalg.matrix_exp(S), rtol=0, atol=1e-13
    )


def test_reflections_are_the_published_product():
    vectors, expected = normal(7, 4, seed=1), torch.eye(7, dtype=torch.float64)
    for u in vectors.T:
        expected = expected @ (torch.eye(7) - 2 * torch.outer(u, u) / u.square().sum())
    X, Y = reflections(vectors)
    torch.testing.assert_close(torch.eye(7) + X @ Y.mT, expected, rtol=0, atol=1e-13)


def test_boft_is_a_product_of_permuted_blocks():
    module = filled("boft", 0.5)
    R = torch.eye(8, dtype=torch.float64)
    for k in range(3):
        order = torch.arange(8).view(-1, 2, 2**k).transpose(1, 2).flatten()
        P = torch.eye(8, dtype=torch.float64)[order]
        blocks = [torch.eye(2) + rotation(skew_matrices(x, 2)) for x in module.skew[k].detach()]
        R = R @ P.T @ torch.block_diag(*blocks) @ P
    torch.testing.assert_close(module.rotation_dense().detach(), R, rtol=0, atol=1e-13)


def test_goft_connects_every_coordinate():
    R = filled("goft", 1.0).rotation_dense().detach()
    assert bool((R.abs() > 1e-12).all())


@pytest.mark.parametrize("name", ["oft", "boft", "hra", "psoft"])
def test_layers_rotate_their_input_and_merge(name):
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, dtype=torch.float64)
    made = FAMILIES[name](layer.weight.detach())
    model = adapt(nn.Sequential(layer), lambda shape: made, targets="0")
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(normal(*p.shape, seed=7))
    x = normal(5, 8, seed=8)
    R = made.rotation_dense().detach()
    expected = (x @ R.mT) @ made.weight.mT + layer.bias.detach()
    got = model(x).detach()
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-11, atol=1e-12)


def test_forward_of_a_block_rotation_forms_nothing_dense():
    W = normal(96, 128, dtype=torch.float32)
    module = lo.oft(W, blocks=32)
    torch.nn.init.normal_(module.skew)
    x = normal(3, 128, seed=1, dtype=torch.float32)
    with forbid_dense((96, 128)):
        module().linear(x).sum().backward()
    assert float(module.skew.grad.norm()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_and_single_precision_keep_lengths(dtype):
    module = filled("oft", 1.0, dtype=dtype)
    W = module.weight.double() + module().detach().to(dtype=torch.float64).to_dense()
    size = float(
        torch.linalg.matrix_norm(W - module.weight.double() @ module.rotation_dense().detach())
    )
    assert size <= 4 * torch.finfo(dtype).eps * float(module.weight.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("blocks", "stages", "radius"), [(1, 1, None), (4, 1, 0.3), (8, 2, 0.3), (32, 6, None)]
)
def test_activations_keep_their_lengths_in_their_own_arithmetic(blocks, stages, radius, dtype):
    """Of each stage, b products and a sum: the promise, and R itself is exact in float64."""
    W, x = normal(6, 64, dtype=dtype), normal(16, 64, seed=1, dtype=dtype)
    module = lo.Orthogonal(W, blocks=blocks, stages=stages, radius=radius)
    with torch.no_grad():
        module.skew.copy_(normal(*module.skew.shape, seed=2))
    R, b = module.rotation_dense().detach(), module.block_size
    assert float(torch.linalg.matrix_norm(R.mT @ R - torch.eye(64), 2)) < 1e-13
    moved = module().detach().rotation.moved(x)
    assert dtype == moved.dtype
    lengths = x.double().norm(dim=1)
    allowed = stages * 2 * (b + 4) * b**0.5 * torch.finfo(dtype).eps / 2 * lengths
    error = (moved.double() - x.double() @ (R - torch.eye(64)).mT).norm(dim=1)
    assert bool((error <= allowed).all())
    assert bool(((x.double() + moved.double()).norm(dim=1) - lengths).abs().le(allowed).all())


def test_rotations_beyond_the_radius_are_refused():
    W = normal(8, 8)
    far = lo.oft(W, blocks=2)
    torch.nn.init.normal_(far.skew, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotInSetError, match=r"OrthogonalSet\(8 x 8, radius=0\.1, blocks=2\)"):
        lo.oft(W, blocks=2, radius=0.1).assign(far().detach())


def test_targets_that_no_rotation_gives_are_refused():
    with pytest.raises(NotInSetError, match="the target must be in OrthogonalSet"):
        lo.oft(normal(8, 8), blocks=2).assign(1e-3 * normal(8, 8, seed=1))


def test_half_turns_are_refused():
    W = torch.eye(4, dtype=torch.float64)
    with pytest.raises(TargetError, match="has no eigenvalue -1"):
        lo.oft(W).assign(torch.diag(torch.tensor([-2.0, -2.0, 0.0, 0.0])).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 3}, "blocks must divide the 8 inputs"),
        ({"blocks": 8}, "into blocks of b >= 2"),
        ({"blocks": 4, "stages": 4}, r"b \*\* stages divide"),
        ({"radius": 2.0}, r"must be in \(0, 2\); got radius=2.0"),
        ({"map": "householder", "radius": 1.0}, "reflections are at distance 2"),
        ({"map": "householder", "rank": 3}, "reflections come in pairs"),
        ({"rank": 2, "blocks": 2}, "go without blocks and stages"),
        ({"rank": 1}, "a single direction cannot be rotated"),
        ({"map": "qr"}, "map must be one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        lo.Orthogonal(normal(6, 8), **options)


def test_config_makes_the_same_map_again():
    for name in FAMILIES:
        module = filled(name, 0.5)
        again = type(module).from_config(module.config(), module.state_dict())
        assert torch.equal(module().to_dense(), again().to_dense())


@given(st.integers(-150, 100), st.sampled_from([None, 0.3]), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_scaled_rotations_start_at_zero_and_are_what_they_say(exponent, radius, seed):
    W = normal(7, 5, seed=seed)
    module = lo.ScaledRotation(W, 3, radius=radius)
    assert not module().to_dense().any()
    (module().to_dense() * normal(7, 5, seed=seed + 1)).sum().backward()
    assert all(bool(p.grad.any()) for p in module.parameters())
    with torch.no_grad():
        module.skew.copy_(10.0**exponent * normal(3, seed=seed))
        module.before.copy_(normal(3, seed=seed + 2))
        module.after.copy_(normal(3, seed=seed + 3))
    core = module.core().detach() + torch.eye(3)
    R = core / module.before.detach() / module.after.detach().unsqueeze(1)
    assert float(torch.linalg.matrix_norm(R.mT @ R - torch.eye(3), 2)) < 1e-10
    assert float(torch.linalg.matrix_norm(R - torch.eye(3), 2)) <= (radius or 2.0) + 1e-10


def test_scales_of_one_are_the_plain_rotation():
    W = normal(7, 5)
    plain, scaled = lo.psoft(W, 3), lo.psoft(W, 3, scales=True)
    for module in (plain, scaled):
        with torch.no_grad():
            module.skew.copy_(normal(3, seed=2).view_as(module.skew))
    torch.testing.assert_close(scaled().to_dense(), plain().to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "a single direction cannot be rotated"),
        ({"rank": 2, "radius": 2.0}, r"must be in \(0, 2\)"),
        ({"rank": 2, "frame": "left"}, "frame must be one of"),
    ],
)
def test_scaled_rotations_refuse_options_that_do_not_fit(options, message):
    with pytest.raises(OptionError, match=message):
        lo.ScaledRotation(normal(6, 8), **options)


def test_a_frame_without_scales_is_refused():
    with pytest.raises(OptionError, match="a frame goes with scales"):
        lo.psoft(normal(6, 8), 2, frame="balanced")
