"""Weights and offsets around any inner parameterization."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, OptionError, ShapeError
from tests.builders import made
from tests.oracles import (
    D,
    dense,
    fill,
    matrix,
    normal,
    schatten,
    tolerance,
    zero_start_gradient,
)

ROWS, COLS = torch.linspace(0.5, 2, 6, dtype=D), torch.linspace(3, 0.1, 5, dtype=D)
FREE, LARGER = "Factored", "DeLoRA(radius, 'paper')"
BALLS = "NBLoRA(radius)", "NBLoRA(radius, p)", "HomogeneousBall(radius)", "DeLoRA(radius)", LARGER
INNER = made((6, 5), 2, FREE, *BALLS, "NestedSVD(outer, inner)", "Weighted(inner, rows, cols)")
every_inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)
COMPLETE = {k: v for k, v in INNER.items() if k != LARGER}


@every_inner
@pytest.mark.parametrize(("a", "b"), [(ROWS, COLS), (ROWS, None), (None, COLS), (None, None)])
def test_weighted_is_the_product(make, a, b):
    layer = fill(lo.Weighted(make(dtype=D), a, b))
    rows = np.ones(6) if a is None else a.numpy()
    cols = np.ones(5) if b is None else b.numpy()
    expected = rows[:, None] * dense(layer.inner()) * cols
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 1e-160, 1.0, 1e4])
def test_weighted_bounds_the_weighted_norm(size):
    ball = lo.HomogeneousBall((6, 5), 2, radius=0.7, dtype=D)
    layer = fill(lo.Weighted(ball, ROWS, COLS), size)
    C = dense(layer()) / ROWS.numpy()[:, None] / COLS.numpy()
    assert np.linalg.norm(C, "nuc") <= 0.7 * (1 + tolerance(D, 2))


@pytest.mark.parametrize("make", COMPLETE.values(), ids=COMPLETE)
@pytest.mark.parametrize(
    "wrap", [lambda p: lo.Weighted(p, ROWS, COLS), lo.Offset], ids=["weighted", "offset"]
)
@pytest.mark.parametrize("seed", range(4))
def test_composition_reaches_every_member(make, wrap, seed):
    layer = wrap(fill(make(dtype=D), seed=1))
    assert layer.complete
    g = torch.Generator().manual_seed(seed)
    target = layer.feasible_set.sample((6, 5), generator=g, dtype=D)
    np.testing.assert_allclose(dense(layer.assign(target)()), dense(target), rtol=0, atol=1e-12)


@every_inner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, D], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_offset_starts_at_zero_exactly(make, dtype, size):
    layer = lo.Offset(fill(make(dtype=dtype), size))
    assert not dense(layer()).any()
    assert not bool(layer().to_dense().any())
    assert dtype == layer().dtype


@every_inner
def test_offset_start_has_the_gradient_of_the_inner_map(make):
    inner, G = fill(make(dtype=D)), normal(6, 5, seed=4)
    expected = zero_start_gradient(inner, G)
    inner.zero_grad()
    expected = {k: g.clone() for k, g in expected.items()}
    got = zero_start_gradient(lo.Offset(inner), G)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[f"inner.{name}"], gradient, rtol=1e-10, atol=1e-13)


@every_inner
def test_offset_is_the_difference(make):
    layer = lo.Offset(fill(make(dtype=D), seed=1))
    start = dense(layer.inner())
    fill(layer, seed=2)
    expected = dense(layer.inner()) - start
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-13)
    assert layer.feasible_set.contains(layer())
    assert np.linalg.matrix_rank(expected) <= layer.rank == layer.feasible_set.rank


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_given_offset_is_subtracted(rank):
    C0 = lo.LowRankOperator.from_dense(normal(6, 5, seed=3), rank)
    layer = lo.Offset(fill(lo.Factored((6, 5), 2, dtype=D)), False, offset=C0)
    expected = dense(layer.inner()) - dense(C0)
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-13)
    assert min(2 + rank, 5) == layer.rank


@pytest.mark.parametrize("inner_rank", [1, 2, 3])
@pytest.mark.parametrize("offset_rank", [1, 2, 3])
def test_zero_takes_the_place_of_an_offset_of_any_rank(inner_rank, offset_rank):
    # A rank-one value once broadcast into an offset of rank 3.
    C0 = lo.LowRankOperator.from_dense(normal(6, 5, seed=3), offset_rank)
    layer = lo.Offset(fill(lo.Factored((6, 5), inner_rank, dtype=D)), False, offset=C0).zero_()
    assert not dense(layer()).any()


def test_offset_takes_the_dtype_of_the_parameters():
    C0 = lo.LowRankOperator.from_dense(normal(6, 5), 1)
    assert torch.float32 == lo.Offset(lo.Factored((6, 5), 2), False, offset=C0)().dtype


def test_offset_does_not_follow_the_parameters():
    inner = fill(lo.Factored((6, 5), 2, dtype=D))
    layer = lo.Offset(inner)
    before = dense(layer.offset)
    with torch.no_grad():
        inner.left.add_(1.0)
    np.testing.assert_array_equal(before, dense(layer.offset))


def test_offset_bounds_the_distance_to_its_start():
    layer = fill(lo.Offset(fill(lo.NBLoRA((6, 5), 2, radius=0.7, dtype=D))), 30.0, seed=5)
    moved = np.linalg.svd(dense(layer()) + dense(layer.offset), compute_uv=False)
    assert schatten(moved, math.inf) <= 0.7 * (1 + tolerance(D, 2))


@pytest.mark.parametrize(
    "wrap", [lambda p: lo.Weighted(p, ROWS, COLS), lo.Offset], ids=["weighted", "offset"]
)
def test_composition_refuses_targets_outside(wrap):
    with pytest.raises(NotInSetError, match=r"pass project=True"):
        wrap(INNER["NBLoRA(radius)"](dtype=D)).assign(torch.tensor(matrix(6, 5, np.array([9.0]))))


@pytest.mark.parametrize("name", ["row_weights", "col_weights"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_weighted_refuses_bad_weights(name, value):
    weights = torch.ones(6 if name == "row_weights" else 5, dtype=D)
    weights[1] = value
    with pytest.raises(OptionError, match=rf"{name} must be positive and finite"):
        lo.Weighted(INNER[FREE](), **{name: weights})


@pytest.mark.parametrize(("name", "length"), [("row_weights", 6), ("col_weights", 5)])
def test_weighted_refuses_weights_of_wrong_length(name, length):
    with pytest.raises(ShapeError, match=rf"{name} must have shape \({length},\); got \(7,\)"):
        lo.Weighted(INNER[FREE](), **{name: torch.ones(7)})


@pytest.mark.parametrize(
    "options",
    [{"minus_initial": False}, {"offset": lo.LowRankOperator.from_dense(torch.zeros(6, 5))}],
)
def test_offset_needs_one_offset(options):
    with pytest.raises(OptionError, match=r"the initial value or a given offset.*: choose one"):
        lo.Offset(INNER[FREE](), **options)


def test_offset_refuses_another_shape():
    offset = lo.LowRankOperator.from_dense(torch.zeros(5, 6))
    with pytest.raises(ShapeError, match=r"the offset must have shape \(6, 5\); got \(5, 6\)"):
        lo.Offset(INNER[FREE](), False, offset=offset)
