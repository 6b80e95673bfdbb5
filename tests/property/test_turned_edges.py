"""Edges of turned weights and their sets, each with its value worked out by hand."""

import pytest
import torch
from scipy.linalg import expm

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.linalg import rotation, skew_matrices, turn_between
from tests.builders import normal

D = torch.float64


def test_the_exponential_is_that_of_the_skew_matrix():
    turned = lo.Orthogonal(torch.eye(3, dtype=D), map="exponential")
    with torch.no_grad():
        turned.skew.copy_(normal(*turned.skew.shape))
    K = skew_matrices(turned.skew.detach(), 3)[0, 0]
    R = turned.rotation_dense().detach()
    torch.testing.assert_close(R, torch.from_numpy(expm(K.numpy())), rtol=0, atol=1e-14)


def test_steps_of_blocks_are_the_rotation_without_the_identity():
    turned = lo.Orthogonal(normal(5, 6), blocks=3, stages=1)
    with torch.no_grad():
        turned.skew.copy_(normal(*turned.skew.shape))
        R, step = turned.rotation_dense(), turned.dense_of(turned.turns())
    torch.testing.assert_close(R - torch.eye(6, dtype=D), step, rtol=0, atol=1e-15)


def test_a_frame_hangs_on_no_graph():
    weight = normal(5, 4).requires_grad_()
    assert not lo.Orthogonal(weight, rank=2, radius=1.0).frame.requires_grad


def test_a_mirror_image_misses_by_the_least_singular_value():
    W0 = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=D))
    mirrored = lo.LowRankOperator.from_dense(torch.diag(torch.tensor([-6.0, 0, 0], dtype=D)))
    assert lo.OrthogonalSet(W0).excess(mirrored) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-300])
def test_entries_of_one_sign_have_their_size(size):
    W0 = -torch.ones(2, 2, dtype=D)
    op = lo.LowRankOperator.from_dense(size * torch.ones(2, 2, dtype=D))
    assert lo.OrthogonalSet(W0, 1.0).excess(op) <= 1e-15


def test_samples_of_another_shape_are_refused():
    with pytest.raises(OptionError, match=r"the shape of the weight, \(4, 3\)"):
        lo.OrthogonalSet(normal(4, 3), 1.0).sample((3, 4))


@pytest.mark.parametrize("options", [{"radius": 0.7}, {"directions": 2}])
def test_the_oracle_reads_operators_as_matrices(options):
    turned = lo.OrthogonalSet(normal(4, 3), **options)
    op = lo.LowRankOperator(normal(4, 2, seed=1), torch.ones(2, dtype=D), normal(3, 2, seed=2))
    found, expected = turned.lmo(op), turned.lmo(op.to_dense())
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-10, atol=1e-12)


def test_a_half_turn_has_a_plane():
    A = torch.eye(1, 3, dtype=D)
    turn = turn_between(A, -2 * A)
    R = turn + torch.eye(3, dtype=D)
    torch.testing.assert_close(A @ turn, -2 * A, rtol=0, atol=1e-14)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D), rtol=0, atol=1e-14)


def test_a_turn_at_the_radius_is_left_as_it_is():
    R = rotation(skew_matrices(normal(6), 4))
    radius = float(torch.linalg.matrix_norm(R, 2))
    A = torch.eye(4, dtype=D)
    free = turn_between(A, R)
    assert torch.equal(turn_between(A, R, radius), free)


def test_there_is_no_gap_where_the_nearest_rotation_is_known():
    turned, far = lo.OrthogonalSet(normal(4, 3)), normal(4, 3, seed=1)
    assert turned.gap(lo.LowRankOperator.from_dense(far)) <= 1e-12


def test_samples_have_as_many_directions_as_are_declared():
    turned, generator = lo.OrthogonalSet(normal(5, 4), directions=2), torch.Generator()
    for seed in range(4):
        op = turned.sample((5, 4), generator=generator.manual_seed(seed), dtype=D)
        assert int((op.singular_values() > 1e-12).sum()) <= 2
        assert turned.contains(op)
