"""Frozen frames keep every norm of the core, in every dtype, and reach what the core reaches."""

import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError, ShapeError, TargetError
from tests.builders import made
from tests.oracles import (
    D,
    dense,
    fill,
    frame,
    matrix,
    normal,
    schatten,
    singular_values,
    tolerance,
    zero_start_gradient,
)

BALL, FREE = "NBLoRA(radius)", "Factored"
INNER = made(
    (4, 3), 2, BALL, "HomogeneousBall(radius)", "DeLoRA(radius)", FREE, "NestedSVD(outer, inner)"
)
every_inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


@every_inner
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_nested_norms_are_those_of_the_core(make, p):
    layer = fill(lo.NestedSVD(normal(9, 7), make(dtype=D)), 3.0)
    core = singular_values(layer.inner())
    assert schatten(singular_values(layer()), p) == pytest.approx(schatten(core, p), rel=1e-13)


def test_nested_is_the_product():
    layer = fill(lo.NestedSVD(normal(9, 7), INNER[BALL](dtype=D)))
    U, _, Vh = np.linalg.svd(normal(9, 7).numpy())
    signs_u = np.sign(np.sum(U[:, :4] * layer.outer_left.numpy(), axis=0))
    signs_v = np.sign(np.sum(Vh[:3].T * layer.outer_right.numpy(), axis=0))
    core = np.diag(signs_u) @ dense(layer.inner()) @ np.diag(signs_v)
    np.testing.assert_allclose(dense(layer()), U[:, :4] @ core @ Vh[:3], rtol=0, atol=1e-13)


@every_inner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, D], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4])
def test_nested_stays_in_its_set(make, dtype, size):
    layer = fill(lo.NestedSVD(normal(9, 7).to(dtype), make(dtype=dtype)), size)
    assert layer.feasible_set.contains(layer())
    assert dtype == layer().dtype


@every_inner
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_nested_reaches_every_member(make, fraction):
    layer = lo.NestedSVD(
        (torch.tensor(frame(9, 4)), torch.tensor(frame(7, 3, seed=1))), make(dtype=D)
    )
    C = layer.inner.feasible_set.sample((4, 3), dtype=D)
    W = layer.outer_left.numpy() @ (fraction * dense(C)) @ layer.outer_right.numpy().T
    np.testing.assert_allclose(dense(layer.assign(torch.tensor(W))()), W, rtol=0, atol=1e-13)


def test_nested_projects_targets_outside_its_spaces():
    layer = lo.NestedSVD(normal(9, 7), lo.NBLoRA((4, 3), 2, radius=0.7, dtype=D))
    W = normal(9, 7, seed=5)
    with pytest.raises(NotInSetError):
        layer.assign(W)
    layer.assign(W, project=True)
    U, V = layer.outer_left.numpy(), layer.outer_right.numpy()
    P, s, Qh = np.linalg.svd(U.T @ W.numpy() @ V)
    expected = U @ (P[:, :2] * np.minimum(s[:2], 0.7) @ Qh[:2]) @ V.T
    np.testing.assert_allclose(dense(layer()), expected, rtol=0, atol=1e-13)


@every_inner
def test_nested_starts_at_zero_with_a_gradient(make):
    layer = lo.NestedSVD(normal(9, 7), make(dtype=D))
    assert not dense(layer()).any()
    gradients = zero_start_gradient(layer, normal(9, 7, seed=3))
    assert max(float(g.norm()) for g in gradients.values()) > 0.1


def test_frames_are_no_parameters():
    layer = lo.NestedSVD(normal(9, 7), INNER[FREE]())
    assert {"inner.left", "inner.right"} == {k for k, _ in layer.named_parameters()}
    assert {"outer_left", "outer_right"} <= set(layer.state_dict())


def test_outer_operator_gives_its_singular_vectors():
    W = matrix(9, 7, np.array([5.0, 4.0, 3.0, 2.0]))
    op = lo.LowRankOperator.from_dense(torch.tensor(W), 4)
    layer = lo.NestedSVD(op, INNER[FREE](dtype=D))
    U, V = layer.outer_left.numpy(), layer.outer_right.numpy()
    np.testing.assert_allclose(
        U.T @ W @ V, np.diag([5.0, 4.0, 3.0, 2.0])[:, :3], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_outer_weight_of_low_rank_is_completed_to_a_frame(rank):
    layer = lo.NestedSVD(torch.tensor(matrix(9, 7, np.ones(rank))), INNER[BALL](dtype=D))
    U = layer.outer_left.numpy()
    np.testing.assert_allclose(U.T @ U, np.eye(4), rtol=0, atol=1e-14)


def test_core_longer_than_the_short_side_of_the_weight():
    layer = lo.NestedSVD(normal(9, 2), lo.NBLoRA((5, 2), 2, radius=0.7, dtype=D))
    U = layer.outer_left.numpy()
    np.testing.assert_allclose(U.T @ U, np.eye(5), rtol=0, atol=1e-14)


@pytest.mark.parametrize("via", [torch.float32, torch.bfloat16], ids=str)
def test_frames_stay_orthonormal_when_the_module_changes_its_dtype(via):
    # Frames rounded to float32 are 1e-7 from orthonormal: in float64 that left the ball.
    core = lo.NBLoRA((4, 3), 2, radius=0.7, dtype=via)
    layer = fill(lo.NestedSVD(normal(9, 7).to(via), core), 3.0).to(D)
    U = layer.outer_left.numpy()
    np.testing.assert_allclose(
        U.T @ U, np.eye(4), rtol=0, atol=1e-15 if via == torch.float32 else 1e-14
    )
    assert singular_values(layer())[0] <= 0.7 * (1 + tolerance(D, 2))


def test_frames_stay_the_same_when_only_the_device_moves():
    layer = lo.NestedSVD(normal(9, 7), INNER[BALL](dtype=D))
    before = layer.outer_left.clone()
    assert torch.equal(before, layer.to("cpu").outer_left)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outer_weight_must_be_finite(value):
    weight = torch.ones(9, 7)
    weight[2, 3] = value
    with pytest.raises(TargetError, match=r"outer weight must be finite; got NaN or infinity"):
        lo.NestedSVD(weight, INNER[FREE]())


def test_given_frames_must_be_orthonormal():
    with pytest.raises(
        TargetError, match=r"orthonormal columns; got a deviation of 2\.0e-03: pass the"
    ):
        lo.NestedSVD((torch.eye(9, 4) * math.sqrt(1.001), torch.eye(7, 3)), INNER[FREE]())


def test_given_frames_must_be_finite():
    with pytest.raises(TargetError, match=r"orthonormal columns; got a deviation of nan"):
        lo.NestedSVD((torch.full((9, 4), math.nan), torch.eye(7, 3)), INNER[FREE]())


def test_given_frames_must_have_as_many_columns_as_the_core():
    with pytest.raises(
        ShapeError, match=r"numbers of columns of the frames, \(4, 2\); got \(4, 3\)"
    ):
        lo.NestedSVD((torch.eye(9, 4), torch.eye(7, 2)), INNER[FREE]())


@pytest.mark.parametrize("shape", [(3, 7), (9, 2)], ids=str)
def test_core_must_fit_into_the_weight(shape):
    with pytest.raises(
        ShapeError, match=rf"must fit into \({shape[0]}, {shape[1]}\); got \(4, 3\)"
    ):
        lo.NestedSVD(torch.ones(shape), INNER[FREE]())
