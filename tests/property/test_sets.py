"""Laws of projections and linear oracles over random sets, matrices and shapes."""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import lowrank_opt as lo
from tests.oracles import D, dense, normal

ORDERS = st.one_of(st.sampled_from([1.0, 2.0, math.inf]), st.floats(1.05, 20))
RADII = st.sampled_from([1e-6, 0.7, 3.0, 1e6])


@st.composite
def balls(draw):
    rank, radius = draw(st.integers(1, 5)), draw(RADII)
    kind = draw(st.sampled_from(["schatten", "ky fan", "box"]))
    if kind == "schatten":
        return lo.SchattenBall(draw(ORDERS), radius, rank)
    if kind == "ky fan":
        return lo.KyFanBall(draw(st.integers(1, 6)), radius, rank)
    fractions = draw(st.lists(st.floats(0, 1), min_size=rank, max_size=rank))
    return lo.SingularValueBox([radius, *(radius * f for f in fractions[1:])])


@st.composite
def matrices(draw):
    m, n, seed = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(0, 2**32 - 1))
    return draw(st.sampled_from([0.0, 1e-8, 1.0, 1e9])) * normal(m, n, seed=seed)


def slack(feasible, W):
    return 1e-13 * (feasible.typical_size * feasible.rank + float(W.abs().max()))


@given(balls(), matrices())
@example(lo.SchattenBall(3.0, 1.0, 2), torch.diag(torch.tensor([1e20, 1e19], dtype=D)))
@example(lo.SchattenBall(1.0, 1.0, 2), torch.diag(torch.tensor([1e20, 1e20], dtype=D)))
def test_projection_is_a_fixed_member(feasible, W):
    op = feasible.project(lo.LowRankOperator.from_dense(W))
    assert feasible.contains(op)
    np.testing.assert_allclose(
        dense(feasible.project(op)), dense(op), rtol=0, atol=slack(feasible, W)
    )


@given(balls(), matrices(), st.integers(0, 2**32 - 1))
def test_projection_is_nearer_than_a_member(feasible, W, seed):
    generator = torch.Generator().manual_seed(seed)
    other = dense(feasible.sample(tuple(W.shape), generator=generator, dtype=D))
    nearest = dense(feasible.project(lo.LowRankOperator.from_dense(W)))
    target = W.numpy()
    assert np.linalg.norm(nearest - target) <= np.linalg.norm(other - target) + slack(feasible, W)


@given(balls(), matrices(), st.integers(0, 2**32 - 1))
@example(lo.SchattenBall(2.0, 10.0, 2), torch.zeros(4, 3, dtype=D), 0)
def test_lmo_is_a_member_below_any_other(feasible, G, seed):
    generator = torch.Generator().manual_seed(seed)
    op = feasible.lmo(G)
    other = dense(feasible.sample(tuple(G.shape), generator=generator, dtype=D))
    size = 1e-13 * feasible.typical_size * feasible.rank * (1 + float(G.norm()))
    assert feasible.contains(op)
    assert np.sum(G.numpy() * dense(op)) <= np.sum(G.numpy() * other) + size


@given(balls(), matrices(), st.floats(0, 1))
def test_sets_are_star_shaped(feasible, W, t):
    op = feasible.project(lo.LowRankOperator.from_dense(W))
    assert feasible.contains(t * op)
