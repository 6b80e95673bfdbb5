"""Who is in the set of turned weights, and how far it is: against rotations that are made."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.linalg import rotation, skew_matrices, turn_between, turn_towards
from lowrank_opt.testing import check_parameterization
from tests.oracles import normal

RADII = st.sampled_from([0.01, 0.4, 1.0, 1.5, 1.95])
SEEDS = st.integers(0, 2**31)


def turn(b, radius, seed, size=1.0):
    entries = size * normal(b * (b - 1) // 2, seed=seed)
    return rotation(skew_matrices(entries, b), "cayley", radius)


def graded(m, n, seed, digits):
    return normal(m, n, seed=seed) * torch.logspace(0, -digits, m, dtype=torch.float64).unsqueeze(1)


def operator(T):
    return lo.LowRankOperator.from_dense(T)


@given(st.integers(2, 7), st.integers(1, 8), RADII, st.sampled_from([0, 3, 7]), SEEDS)
@settings(max_examples=30, deadline=None)
@example(2, 1, 1.95, 0, 0)
def test_rows_turned_within_the_radius_are_members_and_tell_a_rotation(n, m, radius, digits, seed):
    """The theorem, both ways: what a rotation makes is a member, and a member has a rotation."""
    A = graded(m, n, seed, digits)
    T = A @ turn(n, radius, seed + 1, 10.0 ** (seed % 5 - 2))
    assert lo.OrthogonalSet(A, radius).contains(operator(T))
    D = turn_between(A, T, radius).numpy()
    R = np.eye(n) + D
    assert np.linalg.norm(R.T @ R - np.eye(n), 2) < 1e-14 * n
    assert np.linalg.norm(D, 2) <= radius * (1 + 1e-13)
    assert np.linalg.norm(A.numpy() @ D - T.numpy()) <= 1e-13 * radius * float(A.norm())


@given(st.integers(2, 6), st.integers(1, 7), RADII, SEEDS)
@settings(max_examples=30, deadline=None)
def test_excess_is_at_most_the_distance_to_any_member(n, m, radius, seed):
    A = normal(m, n, seed=seed)
    far = normal(m, n, seed=seed + 1) * 10.0 ** (seed % 4 - 2)
    T = far + A @ turn(n, None, seed + 2)
    excess = lo.OrthogonalSet(A, radius).excess(operator(T))
    for k in range(5):
        member = A @ turn(n, radius, seed + 3 + k, 10.0 ** (k - 2))
        assert excess <= float(torch.linalg.matrix_norm(T - member, 2)) * (1 + 1e-12)


@given(st.integers(2, 6), SEEDS, st.sampled_from([0.3, 1.0, 1.7]))
@settings(max_examples=30, deadline=None)
def test_rotations_beyond_the_radius_are_outside_where_rows_show_it(n, seed, radius):
    A = normal(n + 1, n, seed=seed)
    D = turn(n, None, seed + 1, 10.0)
    beyond = float(torch.linalg.matrix_norm(D, 2)) > radius * (1 + 1e-9)
    assert beyond != lo.OrthogonalSet(A, radius).contains(operator(A @ D))


def test_rows_that_do_not_show_it_leave_the_rotation_free():
    """A half turn of a plane, but the only row turns by a right angle: a shorter way does it."""
    A = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    T = torch.tensor([[-1.0, 1.0, 0.0]], dtype=torch.float64)
    near = lo.OrthogonalSet(A, math.sqrt(2))
    assert near.contains(operator(T))
    assert not lo.OrthogonalSet(A, 1.41).contains(operator(T))
    assert abs(float(torch.linalg.matrix_norm(turn_between(A, T), 2)) - math.sqrt(2)) < 1e-14


def test_reflections_are_no_rotations_where_columns_tell():
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    for rows, inside in ((2, True), (3, False), (5, False)):
        A = normal(rows, 3, seed=1)
        member = operator(A @ mirror - A)
        assert inside == lo.OrthogonalSet(A).contains(member)


def test_blocks_do_not_mix():
    A = normal(5, 6, seed=1)
    D = torch.block_diag(turn(3, 1.0, 2), turn(3, 1.0, 3))
    assert lo.OrthogonalSet(A, 1.0, 2).contains(operator(A @ D))
    assert not lo.OrthogonalSet(A, 1.0, 3).contains(operator(A @ D))
    assert not lo.OrthogonalSet(A, 1.0, 2).contains(operator(A @ turn(6, 1.0, 4)))


def test_directions_bound_the_number_of_reflections():
    A = normal(5, 6, seed=1)
    four = lo.hra(A, 4)
    torch.nn.init.normal_(four.vectors, generator=torch.Generator().manual_seed(2))
    W = four().detach()
    assert lo.OrthogonalSet(A, directions=4).contains(W)
    assert not lo.OrthogonalSet(A, directions=2).contains(W)


@given(st.floats(-math.pi, math.pi), RADII, SEEDS)
@settings(max_examples=20, deadline=None)
def test_projection_of_two_inputs_is_the_closed_form(angle, radius, seed):
    """Of a plane the objective is a cosine of the angle: the nearest angle that is allowed."""
    A = normal(3, 2, seed=seed)
    c, s = math.cos(angle), math.sin(angle)
    R = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    target = 1.3 * A @ R - A
    largest = 2 * math.asin(radius / 2)
    best = max(-largest, min(largest, angle))
    c, s = math.cos(best), math.sin(best)
    expected = A @ torch.tensor([[c, -s], [s, c]], dtype=torch.float64) - A
    found = lo.OrthogonalSet(A, radius).project(operator(target)).to_dense()
    assert float((found - expected).norm()) <= 1e-12 * float(A.norm())


@given(st.integers(2, 5), st.integers(1, 6), RADII, SEEDS)
@settings(max_examples=20, deadline=None)
def test_no_member_is_nearer_than_the_gap_says(n, m, radius, seed):
    A, T = normal(m, n, seed=seed), normal(m, n, seed=seed + 1)
    near = lo.OrthogonalSet(A, radius)
    reached = float((near.project(operator(T)).to_dense() - T).norm())
    gap = near.gap(operator(T))
    assert gap >= 0
    for k in range(20):
        member = A @ turn(n, radius, seed + 2 + k, 10.0 ** (k % 4 - 1))
        assert float((member - T).norm()) >= reached - gap - 1e-12


@given(st.integers(2, 6), RADII, SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_largest_inner_product_is_that_of_a_grid_of_turns(n, radius, seed):
    """A local maximum: neither the start of the climb nor a step around the end is better."""
    M = normal(n, n, seed=seed)
    D = turn_towards(M, radius)
    assert float(torch.linalg.matrix_norm(D, 2)) <= radius * (1 + 1e-13)
    value, eye = float((M * D).sum()), torch.eye(n, dtype=torch.float64)
    for k in range(10):
        # Conjugation keeps the angles.
        other = eye + turn(n, 10.0 ** (-1 - k % 4), seed + k)
        assert float((M * (other @ D @ other.mT)).sum()) <= value + 1e-12 * float(M.norm())


@given(st.integers(2, 6), st.integers(1, 4), RADII, SEEDS)
@settings(max_examples=20, deadline=None)
def test_wide_weights_reach_every_member(n, m, radius, seed):
    """Where the weight leaves R free, an R within the radius is found."""
    A = normal(m, n, seed=seed)
    target = A @ turn(n, radius, seed + 1, 10.0 ** (seed % 3 - 1))
    module = lo.oft(A, radius=radius)
    assert module.complete
    module.assign(target)
    assert module.distance() <= radius * (1 + 1e-13)
    assert module.residual(target) <= 1e-12 * float(A.norm())


@given(st.integers(2, 6), st.integers(1, 8), SEEDS)
@settings(max_examples=20, deadline=None)
def test_reflections_reach_every_member(n, m, seed):
    A, rank = normal(m, n, seed=seed), min(m, n) - min(m, n) % 2
    if not rank:
        return
    made, found = lo.hra(A, rank), lo.hra(A, rank)
    with torch.no_grad():
        made.vectors.copy_(normal(n, rank, seed=seed + 1))
    assert made.feasible_set.contains(made().detach())
    assert found.assign(made().detach()).residual(made().detach()) <= 1e-12 * float(A.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotations_in_half_precision_keep_their_laws(dtype):
    """The weight, the parameters and the factors are of 16 bits; the rotation is of float64."""
    laws = ["membership", "section", "completeness", "assign", "export", "certificate"]
    for make in (turned_map, reflected_map):
        check_parameterization(make, only=laws, profile="quick", dtype=dtype)


def turned_map(shape, rank, *, dtype):
    return lo.oft(torch.randn(shape, dtype=dtype), radius=1.2)


def reflected_map(shape, rank, *, dtype):
    return lo.hra(torch.randn(shape, dtype=dtype), min(shape) - min(shape) % 2)


def test_assign_projects_onto_rotations():
    W = normal(6, 4, seed=3)
    module = lo.oft(W, radius=0.5).assign(normal(6, 4, seed=4), project=True)
    assert abs(module.distance() - 0.5) < 1e-12
    assert module.feasible_set.contains(module().detach())


def test_small_turns_keep_their_digits():
    D = rotation(skew_matrices(1e-12 * normal(6), 4))
    A = normal(5, 4, seed=1)
    found = turn_between(A, A @ D)
    assert float((found - D).norm()) <= 1e-13 * float(D.norm())
    module = lo.oft(A).assign(lo.LowRankOperator(A, torch.ones(4), D.mT))
    assert float((module.turns()[0, 0].detach() - D).norm()) <= 1e-12 * float(D.norm())


def test_what_is_combined_is_in_the_box():
    A = normal(5, 4, seed=1)
    near = lo.OrthogonalSet(A, 0.5)
    other = near.sample((5, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = near.averaged([near, near], [0.5, 0.5], rank=4)
    assert mean.contains(0.5 * other + 0.5 * near.sample((5, 4), dtype=torch.float64))
    assert near.scaled(2.0).contains(2.0 * other)
    assert not near.contains(2.0 * other)
    assert near.truncated(1).contains(other.truncate(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 2.5}, r"in \(0, 2\]; got radius=2.5"),
        ({"blocks": 3}, "blocks must divide the 4 inputs"),
        ({"blocks": 4}, "into two or more each; got 4"),
        ({"directions": 3}, "reflections are an even number"),
        ({"directions": 2, "radius": 1.0}, "without radius and blocks"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        lo.OrthogonalSet(normal(5, 4), **options)


def test_a_single_input_does_not_turn():
    with pytest.raises(ShapeError, match="at least 2 inputs; got 1"):
        lo.OrthogonalSet(normal(5, 1))


@pytest.mark.parametrize("radius", [0.3, 1.2, 2.0])
def test_samples_are_members_of_every_radius(radius):
    turned = lo.OrthogonalSet(normal(5, 4, seed=1), radius)
    generator = torch.Generator().manual_seed(0)
    found = [turned.sample((5, 4), generator=generator, dtype=torch.float64) for _ in range(12)]
    assert all(turned.contains(op) for op in found)


def test_a_block_of_zeros_stays_in_place():
    weight = torch.cat((normal(6, 2), torch.zeros(6, 2, dtype=torch.float64)), dim=1)
    turns = lo.OrthogonalSet(weight, blocks=2)
    member = turns.project(lo.LowRankOperator.from_dense(normal(6, 4, seed=1)))
    assert turns.contains(member)
    torch.testing.assert_close(member.to_dense()[:, 2:], weight[:, 2:])


def test_samples_of_rotations_turn_each_number_of_planes():
    weight = normal(6, 5)
    generator = torch.Generator().manual_seed(0)
    feasible = lo.OrthogonalSet(weight)
    drawn = [feasible.sample((6, 5), generator=generator, dtype=torch.float64) for _ in range(24)]
    assert {2, 4} <= {int((x.singular_values() > 1e-9).sum()) for x in drawn} <= {0, 2, 4}
