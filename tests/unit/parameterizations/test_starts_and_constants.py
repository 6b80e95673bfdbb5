"""What a map starts from, what it is given, and what its small parts promise at their edges."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, ShapeError, TargetError
from lowrank_opt.parameterizations.balls.bounds import on_sphere
from lowrank_opt.parameterizations.balls.pairs import units_but_last
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.composed.weight_decomposed import _with_direct_norms
from lowrank_opt.parameterizations.turned.leading import LeadingValues
from tests.builders import normal, seeded

D, SHAPE, RANK = torch.float64, (7, 6), 2
EXAMPLES = {e.name: e.make for e in examples()}
every_example = pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
# What subtracts its start keeps it, and renews what it subtracts.
OFFSETS = {"Offset(inner)", "pissa", "olora", "WeightDecomposed(inner, weight)"}
MAKE = {name: make for name, make in EXAMPLES.items() if name not in OFFSETS} | {
    "NBLoRA(skew)": lambda s, r, dtype: lo.NBLoRA(s, r, radius=1.0, skew=True, dtype=dtype),
}


@every_example
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_an_example_is_of_the_dtype_that_is_asked(make, dtype):
    assert {dtype} == {p.dtype for p in make(SHAPE, RANK, dtype=dtype).parameters()}


def restarted(module, size):
    """The parameters after a start from others, all of one size; none where there is no start."""
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(size)
    try:
        module.zero_(generator=seeded(3))
    except NotImplementedError:
        return []
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_start_forgets_what_was_before(make):
    module = make(SHAPE, RANK, dtype=D)
    one, other = restarted(module, 0.1), restarted(module, 3.0)
    assert all(map(torch.equal, one, other))


def given(*shape):
    return normal(*shape, seed=4).requires_grad_()


def ball(*shape):
    return lo.HomogeneousBall(shape, 2, radius=1.0, dtype=D)


CONSTANTS = {
    "Weighted": lambda: lo.Weighted(ball(7, 6), given(7).exp(), given(6).exp()),
    "Complement": lambda: lo.Complement(ball(7, 6), given(7, 2), given(6, 2)),
    "Inductive": lambda: lo.Inductive(ball(3, 2), given(7, 3), given(6, 2)),
    "Inductive, orthonormal": lambda: lo.Inductive(ball(3, 6), given(7, 3), orthonormal=True),
    "Inductive, columns": lambda: lo.Inductive(ball(7, 2), None, given(6, 2)),
    "NestedSVD": lambda: lo.NestedSVD(given(7, 6), ball(3, 3)),
    "ETHER": lambda: lo.ETHER(given(7, 6)),
    "Orthogonal": lambda: lo.oft(given(7, 6), blocks=2),
    "ScaledRotation": lambda: lo.ScaledRotation(given(7, 6), 2),
    "clora": lambda: lo.clora(ball(7, 6), 2),
    "lora_null": lambda: lo.lora_null(ball(7, 6), given(9, 6), 2),
    "osf": lambda: lo.osf(given(7, 6), 2),
    "lora_xs": lambda: lo.lora_xs(given(7, 6), 2),
    "nora": lambda: lo.nora(given(7, 6), 2, outer_rank=3),
    "pissa": lambda: lo.pissa(given(7, 6), 2),
}


@pytest.mark.parametrize("make", CONSTANTS.values(), ids=CONSTANTS)
def test_what_is_given_is_a_constant(make):
    module = make()
    assert not any(x.requires_grad for x in module.buffers())
    assert all(x.is_leaf for x in (*module.buffers(), *module.parameters()))


DRAWN = {
    "lora_xs": lambda g: lo.lora_xs(normal(7, 6), 2, start_std=0.1, generator=g),
    "clora": lambda g: lo.clora(lo.Factored((7, 6), 2, generator=g), 2, generator=g),
    "Factored": lambda g: lo.Factored((7, 6), 2, generator=g),
    "SpectralLoRA": lambda g: lo.SpectralLoRA((7, 6), 2, radius=1.0, generator=g),
    "hra": lambda g: lo.hra(normal(7, 6), 2, generator=g),
}


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_what_is_drawn_comes_from_the_generator(make):
    before = torch.random.get_rng_state()
    one, same, other = (make(seeded(k)).state_dict() for k in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert not all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.parametrize("name", ["left", "right"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_directions_are_finite(name, value):
    with pytest.raises(TargetError, match=f"{name} must be finite"):
        lo.Complement(ball(6, 6), **{name: torch.full((6, 1), value, dtype=D)})


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_bounds_of_zero_are_zero_and_smooth(p):
    free = torch.zeros(3, dtype=D, requires_grad=True)
    bounds = on_sphere(free, lo.SchattenBall(p, 5.0, 3))
    bounds.sum().backward()
    assert not bounds.any()
    assert bool(free.grad.isfinite().all())


@pytest.mark.parametrize("count", range(1, 8))
def test_paired_columns_are_units_and_a_last_one_is_shorter(count):
    norms = units_but_last(0.5 * normal(2, count).sign()).norm(dim=0)
    paired = count // 2 * 2
    torch.testing.assert_close(norms[:paired], torch.ones(paired, dtype=D))
    torch.testing.assert_close(norms[paired:], torch.full((count - paired,), 0.5**0.5).double())


@pytest.mark.parametrize(
    ("rank", "options"),
    [(3, {}), (1, {}), (2, {"radius": 1.0}), (2, {"p": 1.0}), (2, {"ky_fan": 1})],
)
def test_bounds_replace_every_other_size(rank, options):
    with pytest.raises(OptionError, match="bounds replaces"):
        lo.NBLoRA(SHAPE, rank, bounds=[1.0, 0.5], **options)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_normalized_rows_are_reached_and_one_needs_no_filling(rank):
    module = lo.NormalizedLoRA(SHAPE, rank, dtype=D)
    target = normal(7, rank - 1) @ normal(rank - 1, 6, seed=1)
    module.assign(target)
    torch.testing.assert_close(module().to_dense(), target, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.right.detach().norm(dim=1), torch.ones(6, dtype=D))
    # The row that is longest fills its norm itself: the others share the scale with it.
    filling = float(module.right[:, -1].detach().abs().min())
    assert filling == pytest.approx(float(rank == 1), abs=1e-7)


@pytest.mark.parametrize("squared", [True, False])
def test_orthonormal_factors_have_no_penalty(squared):
    module = lo.AdaLoRA(SHAPE, RANK, dtype=D)
    with torch.no_grad():
        for p in (module.left, module.right):
            p.copy_(torch.eye(*p.shape))
    penalty = module.orthogonality_penalty(squared=squared)
    penalty.backward()
    assert penalty == 0
    assert not module.left.grad.any()


def test_leading_values_are_those_of_the_weight_as_it_is():
    values, one, other = LeadingValues(), normal(5, 4), normal(5, 4, seed=1)
    for weight in (one, other, one, one.mul_(2), other):
        truth = np.linalg.svd(weight.numpy())[1][:2]
        np.testing.assert_allclose(values.of(weight, 2).numpy(), truth, rtol=1e-12)
    assert values.of(other, 2) is values.of(other, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda r: lo.Weighted(lo.HomogeneousBall(SHAPE, 2, radius=r), torch.ones(7)),
        lambda r: lo.Offset(lo.HomogeneousBall(SHAPE, 2, radius=r)),
    ],
    ids=["Weighted", "Offset"],
)
def test_members_with_other_parts_are_no_batch(make):
    with pytest.raises(ShapeError, match="equal but for their parameters"):
        lo.BatchedParameterization([make(1.0), make(2.0)])


def test_reflections_are_two_unless_said_otherwise():
    assert lo.Orthogonal(normal(5, 4), map="householder").vectors.shape == (4, 2)


def test_norms_of_rows_that_cancel_are_computed_in_compiled_code_too():
    weight, right = normal(5, 4), normal(4, 2, seed=1)
    left, factor = normal(5, 2, seed=2), torch.tensor(0.25, dtype=D)
    clear, known = torch.tensor([True, False] * 2 + [True]), torch.arange(5.0, dtype=D)
    found = _with_direct_norms(clear, known, weight, factor, left, right)
    direct = torch.from_numpy(np.linalg.norm((weight / 4 + left @ right.mT).numpy(), axis=1))
    torch.testing.assert_close(found, torch.where(clear, known, direct))


SPLITS = {"left": lambda s: s, "sqrt": np.sqrt, "right": np.ones_like}


@pytest.mark.parametrize(("split", "shares"), SPLITS.items(), ids=SPLITS)
def test_parallel_frames_have_their_share_of_the_values(split, shares):
    weight = normal(7, 6)
    module = lo.nora(weight, 2, outer_rank=3, form="parallel", split=split)
    torch.nn.init.normal_(module.inner.left, generator=seeded(1))
    U, sigma, _ = np.linalg.svd(weight.numpy())
    core = shares(sigma[:3, None]) * module.inner().to_dense().detach().numpy()
    found = U[:, :3].T @ module().to_dense().detach().numpy()
    # The signs of singular vectors are free.
    np.testing.assert_allclose(np.abs(found), np.abs(core), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_the_bound_of_frozen_factors_is_in_float64(dtype):
    module = lo.VeRA(SHAPE, 3, dtype=dtype)
    torch.nn.init.normal_(module.rows, generator=seeded(1))
    B, A, b, d = (
        x.detach().double().numpy()
        for x in (module.frozen_left, module.frozen_right, module.rows, module.inner)
    )
    truth = np.abs(b).max() * np.abs(d).max() * np.linalg.norm(B, 2) * np.linalg.norm(A, 2)
    assert float(module.spectral_bound().detach()) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_row_or_inner_scale_alone_fits_better(seed):
    module, target = lo.VeRA(SHAPE, 3, dtype=D), normal(*SHAPE, seed=seed)
    found, residual = module.fit(target)
    B, A = (x.detach().numpy() for x in (module.frozen_left, module.frozen_right))
    A = A if A.shape[0] == 3 else A.T
    b, T = found["rows"].numpy(), target.numpy()
    columns = np.stack([np.outer(b * B[:, k], A[k]).ravel() for k in range(3)], axis=1)
    best = np.linalg.lstsq(columns, T.ravel(), rcond=None)[0]
    better = np.linalg.norm(T.ravel() - columns @ best) / np.linalg.norm(T)
    assert residual <= better * (1 + 1e-3)
