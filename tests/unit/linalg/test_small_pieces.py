"""Entrywise steps, climbing and contractions against what they say, at every size."""

import itertools
import math

import numpy as np
import pytest
import torch

from lowrank_opt.linalg import (
    framed_product,
    polar_frame,
    project_l1_ball,
    project_lp_ball,
    project_top_k_sum,
    qr_frame,
    reflections,
    reflections_towards,
)
from lowrank_opt.linalg.cayley import cayley_signs
from lowrank_opt.linalg.climbing import climb
from lowrank_opt.linalg.contraction import inverse_one_plus_gram, invert_contraction
from lowrank_opt.linalg.entrywise import drop_and_rescale, elect_sign_and_average, keep_largest
from lowrank_opt.linalg.forward_rule import forward_rule, or_zeros
from lowrank_opt.linalg.reflections import _swept
from tests.builders import normal

D = torch.float64


@pytest.mark.parametrize("density", [1e-3, 0.1, 0.25, 0.5, 0.74, 0.95, 1.0])
def test_the_largest_entries_are_kept(density):
    x = normal(4, 5)
    kept = max(1, round(20 * density))
    smallest = np.sort(np.abs(x.numpy()), axis=None)[-kept]
    expected = np.where(np.abs(x.numpy()) >= smallest, x.numpy(), 0.0)
    assert np.array_equal(expected, keep_largest(x, density))
    assert kept == int(keep_largest(x, density).count_nonzero())


def test_equal_entries_are_kept_together():
    assert [0.0, -2.0, 2.0, 0.0] == keep_largest(torch.tensor([1.0, -2, 2, 0.5]), 0.25).tolist()


def mean_of_the_elected(values):
    sign = np.sign(sum(values))
    agreeing = [v for v in values if v and np.sign(v) == sign]
    return sum(agreeing) / len(agreeing) if agreeing else 0.0


def test_signs_are_elected_entry_by_entry():
    cells = [*itertools.product([-2.0, -1.0, 0.0, 1.0, 3.0], repeat=3)]
    terms = torch.tensor(cells, dtype=D).mT.reshape(3, 25, 5)
    expected = torch.tensor([mean_of_the_elected(cell) for cell in cells], dtype=D).view(25, 5)
    torch.testing.assert_close(elect_sign_and_average([*terms]), expected)


@pytest.mark.parametrize("seeded", [True, False])
def test_entries_are_dropped_by_the_generator(seeded):
    x = normal(30, 7)
    generator = torch.Generator().manual_seed(1) if seeded else None
    state = torch.random.get_rng_state() if generator is None else generator.get_state()
    found = drop_and_rescale(x, 0.25, generator)
    again = torch.Generator()
    again.set_state(state)
    kept = torch.rand(30, 7, generator=again) < 0.25
    assert torch.equal(torch.where(kept, x / 0.25, 0.0), found)


TARGET = torch.tensor([[1.0, -2.0, 0.5]], dtype=D)
HILLS = {
    "below zero": lambda x: -(x - TARGET).square().sum() - 1,
    "above zero": lambda x: 10 - (x - TARGET).square().sum(),
    "from zero": lambda x: TARGET.square().sum() - (x - TARGET).square().sum(),
    "curved": lambda x: -((x - TARGET) ** 4 + (x - TARGET) ** 2).sum(),
}


@pytest.mark.parametrize("hill", HILLS.values(), ids=HILLS)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_climbing_reaches_the_top_whatever_the_size(hill, size):
    start = torch.zeros(1, 3, dtype=D)
    with torch.inference_mode():
        top = climb(lambda x: size * hill(x), start)
    torch.testing.assert_close(top.clone(), TARGET, rtol=0, atol=1e-7)


@pytest.mark.parametrize("hill", HILLS.values(), ids=HILLS)
def test_who_is_at_the_top_stays(hill):
    start = TARGET.clone()
    assert start is climb(hill, start)


def test_climbing_ends_after_so_many_steps():
    tops = [climb(HILLS["curved"], torch.full((1, 3), 9.0).double(), steps=n) for n in (1, 100)]
    gaps = [float((top - TARGET).abs().max()) for top in tops]
    assert gaps[1] < 1e-6 < 0.1 < gaps[0]


def test_values_beyond_one_count_as_one():
    found = invert_contraction(torch.tensor([-3.0, -1.0, 1.0 + 1e-6, 3.0]))
    assert [-1.0, -1.0, 1.0, 1.0] == pytest.approx(found.tolist())


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6, 1e75, 1e155])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gram_matrices_do_not_overflow(size, sign):
    Q = sign * torch.linalg.qr(normal(6, 3)).Q.abs()
    Q[0, 0] = 0.0
    _, s, Vh = np.linalg.svd(Q.numpy(), full_matrices=False)
    expected = (Vh.T / (1 + (size * s) ** 2 if size < 1e150 else math.inf)) @ Vh
    found = inverse_one_plus_gram(size * Q).numpy()
    np.testing.assert_allclose(
        found, expected, rtol=1e-12, atol=1e-14 / max(1.0, min(size, 1e140)) ** 2
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_sign_of_a_column_enlarges_the_determinant_further(seed):
    top = torch.linalg.qr(normal(9, 6, seed=seed)).Q[:6].numpy()
    signs = cayley_signs(torch.from_numpy(top)).numpy()
    flips = 1 - 2 * np.eye(6)
    sizes = [np.linalg.det(np.eye(6) + top * signs * flip) for flip in flips]
    assert max(np.abs(sizes)) <= 1.01 * (1 + 1e-9) * abs(np.linalg.det(np.eye(6) + top * signs))


class Cube(torch.autograd.Function):
    """With a rule for every order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return x**3 * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    @forward_rule
    def jvp(saved, tangents):
        (x, y), (dx, dy) = saved, or_zeros(tangents, saved)
        return 3 * x**2 * y * dx + x**3 * dy


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("batched", [False, True])
def test_rules_are_those_of_every_order(order, batched):
    x = torch.tensor([2.0, -1.5], dtype=D)

    def function(x):
        return Cube.apply(x, torch.tensor(0.5, dtype=D))

    for _ in range(order):
        function = torch.func.jacfwd(function)
    found = torch.func.vmap(function)(x) if batched else torch.stack([function(v) for v in x])
    powers = {1: 3 * x**2, 2: 6 * x, 3: torch.full_like(x, 6.0)}
    torch.testing.assert_close(found, 0.5 * powers[order])


def test_directions_that_are_missing_are_zero():
    x, y = torch.tensor([2.0, 3.0], dtype=D).requires_grad_(), normal(2, 2)
    filled = or_zeros((None, y), (x, y))
    assert torch.equal(torch.zeros(2, dtype=D), filled[0])
    assert filled[1] is y


PROJECTIONS = {
    "l1": project_l1_ball,
    **{f"l{p}": lambda v, radius, p=p: project_lp_ball(v, radius, p) for p in (1.3, 2.0, 7.0)},
    "top 2": lambda v, radius: project_top_k_sum(v, radius, 2),
}


@pytest.mark.parametrize("project", PROJECTIONS.values(), ids=PROJECTIONS)
def test_projections_scale_with_the_ball(project):
    v = torch.tensor([2.0, 1.9, 1.2, 0.7], dtype=D)
    for radius in (2.0**-30, 0.37, 1e3):
        torch.testing.assert_close(project(radius * v, radius), radius * project(v, 1.0))


@pytest.mark.parametrize("size", [1e-140, 1.0, 1e200])
def test_a_product_turns_its_sign_with_a_factor(size):
    left, right = size * normal(5, 2).abs(), normal(4, 2, seed=1).abs() / size
    product, turned = framed_product(left, right), framed_product(-left, right)
    dense, negative = (p.left_frame @ p.core @ p.right_frame.mT for p in (product, turned))
    torch.testing.assert_close(dense, left @ right.mT)
    torch.testing.assert_close(-dense, negative)
    back = framed_product(-left, -right)
    one, other, same = (a @ b.mT for a, b in (p.contracted() for p in (product, turned, back)))
    torch.testing.assert_close(-one, other)
    torch.testing.assert_close(one, same)


@pytest.mark.parametrize("frame", [qr_frame, polar_frame])
@pytest.mark.parametrize("exponent", [-200, -30, 3, 300])
def test_a_frame_turns_as_slowly_as_its_columns_are_long(frame, exponent):
    F, G = normal(5, 2), normal(5, 2, seed=1)
    slopes = [
        torch.autograd.grad((frame(x) * G).sum(), x)[0]
        for x in ((F * 2.0**k).requires_grad_() for k in (0, exponent))
    ]
    torch.testing.assert_close(slopes[1] * 2.0**exponent, slopes[0])


@pytest.mark.parametrize("frame", [qr_frame, polar_frame])
@pytest.mark.parametrize("size", [1e-308, 1e-302, 1.2e-300, 1e-299, 1e-290])
def test_slopes_of_frames_of_almost_nothing_are_finite(frame, size):
    x = (size * torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.5, 0.5]], dtype=D)).requires_grad_()
    (slope,) = torch.autograd.grad(8 * frame(x)[0].sum(), x)
    assert bool(slope.isfinite().all())


def alignment(slope, vectors):
    X, Y = reflections(vectors)
    return float((slope * (X @ Y.mT)).sum())


@pytest.mark.parametrize("seed", range(4))
def test_reflections_turn_towards_a_slope(seed):
    slope, start = normal(5, 5, seed=seed), normal(5, 4, seed=seed + 10)
    swept, found = _swept(slope, start), reflections_towards(slope, start)
    values = [alignment(slope, x) for x in (start, swept, found)]
    assert sorted(values) == pytest.approx(values, abs=1e-9)
    near = [alignment(slope, found + 1e-3 * normal(5, 4, seed=k)) for k in range(6)]
    assert max(near) <= values[-1] + 1e-9
