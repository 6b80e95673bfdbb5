"""Sets against dense singular values, quadratic programs and duality."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, RadiusError, RankError
from tests.builders import normal
from tests.oracles import dense

D = torch.float64
M, N = 6, 5


def diagonal(*values):
    W = torch.zeros(M, N, dtype=D)
    W.diagonal()[: len(values)] = torch.tensor(values, dtype=D)
    return lo.LowRankOperator.from_dense(W)


def frame(rows, cols, seed=0):
    return torch.linalg.qr(normal(rows, cols, seed=seed)).Q


BALLS = {
    "nuclear": lo.SchattenBall(1, 2.0, 3),
    "p=1.5": lo.SchattenBall(1.5, 2.0, 3),
    "frobenius": lo.SchattenBall(2, 2.0, 3),
    "p=4": lo.SchattenBall(4, 2.0, 3),
    "spectral": lo.SchattenBall(math.inf, 2.0, 3),
    "rank one": lo.SchattenBall(1, 2.0, 1),
    "ky fan 1": lo.KyFanBall(1, 2.0, 3),
    "ky fan 2": lo.KyFanBall(2, 2.0, 3),
    "ky fan 9": lo.KyFanBall(9, 2.0, 3),
    "box": lo.SingularValueBox([2.0, 1.0, 0.5]),
    "box with zero": lo.SingularValueBox([2.0, 0.0]),
}
SETS = BALLS | {
    "rank": lo.RankAtMost(3),
    "weighted": lo.WeightedSchattenBall(
        p=1,
        radius=2.0,
        rank=3,
        row_weights=torch.linspace(0.5, 2, M, dtype=D),
        col_weights=torch.linspace(3, 1, N, dtype=D),
    ),
    "nested": lo.NestedSet(lo.SchattenBall(1, 2.0, 2), frame(M, 4), frame(N, 3)),
    "shifted": lo.ShiftedSet(
        lo.SchattenBall(1, 2.0, 2), lo.LowRankOperator.from_dense(normal(M, N), 1)
    ),
    "nested in weighted": lo.WeightedSet(
        lo.NestedSet(lo.KyFanBall(2, 1.0, 2), frame(M, 4), frame(N, 3)), torch.linspace(1, 2, M)
    ),
    "weighted in nested": lo.NestedSet(
        lo.WeightedSet(lo.SchattenBall(2, 1.0, 2), torch.linspace(1, 2, 4)),
        frame(M, 4),
        frame(N, 3),
    ),
}
every_set = pytest.mark.parametrize("feasible", SETS.values(), ids=SETS)
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)


@pytest.mark.parametrize(
    ("feasible", "excess"),
    [
        (lo.SchattenBall(1, 5.0, 3), 1.5),
        (lo.SchattenBall(2, 3.0, 3), math.sqrt(9 + 4 + 2.25) - 3),
        (lo.SchattenBall(3, 3.0, 3), (27 + 8 + 1.5**3) ** (1 / 3) - 3),
        (lo.SchattenBall(math.inf, 2.5, 3), 0.5),
        (lo.SchattenBall(math.inf, 5.0, 3), 0.0),
        (lo.SchattenBall(math.inf, 5.0, 2), 1.5),
        (lo.KyFanBall(2, 4.0, 3), 1.0),
        (lo.SingularValueBox([3.0, 1.0, 1.5]), 0.5),
        (lo.RankAtMost(2), 1.5),
        (lo.RankAtMost(1), 2.0),
    ],
    ids=str,
)
def test_excess_of_known_values(feasible, excess):
    assert feasible.excess(diagonal(3.0, 2.0, 1.5)) == pytest.approx(excess, rel=1e-14)


@every_set
def test_samples_are_members(feasible):
    for seed in range(20):
        op = feasible.sample((M, N), generator=torch.Generator().manual_seed(seed), dtype=D)
        assert (M, N) == op.shape
        assert feasible.contains(op), seed


@pytest.mark.parametrize("name", sorted(BALLS.keys() - {"box with zero"}))
def test_samples_reach_interior_boundary_and_low_rank(name):
    ball = BALLS[name]
    g = torch.Generator().manual_seed(0)
    values = torch.stack(
        [ball.sample((M, N), generator=g, dtype=D).singular_values() for _ in range(60)]
    )
    excess = torch.stack([ball.singular_value_excess(v) for v in values])
    assert float(excess.min()) < -0.1 * 2.0
    assert float(excess.max()) > -1e-12
    assert 0.0 == float(values.amin(dim=-1).min())


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_sample_has_the_dtype(feasible, dtype):
    assert dtype == feasible.sample((M, N), dtype=dtype).dtype


@every_set
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 100.0, 1e12])
def test_projection_is_inside_and_idempotent(feasible, size):
    op = feasible.project(lo.LowRankOperator.from_dense(size * normal(M, N)))
    assert feasible.contains(op, rtol=64 * max(1, size) * torch.finfo(D).eps)
    again = feasible.project(op)
    np.testing.assert_allclose(dense(again), dense(op), rtol=0, atol=1e-13 * max(1, size))


@every_set
def test_projection_keeps_members(feasible):
    op = feasible.sample((M, N), generator=torch.Generator().manual_seed(3), dtype=D)
    np.testing.assert_allclose(dense(feasible.project(op)), dense(op), rtol=0, atol=1e-13)


NOT_FROBENIUS = {"weighted", "nested in weighted", "weighted in nested"}


@pytest.mark.parametrize("name", sorted(SETS.keys() - NOT_FROBENIUS))
@pytest.mark.parametrize("seed", range(2))
def test_projection_is_nearer_than_samples(name, seed):
    g = torch.Generator().manual_seed(seed)
    W = 2 * normal(M, N, seed=seed)
    nearest = dense(SETS[name].project(lo.LowRankOperator.from_dense(W)))
    distance = np.linalg.norm(nearest - W.numpy())
    others = [dense(SETS[name].sample((M, N), generator=g, dtype=D)) for _ in range(12)]
    # Members around the projection test more than far away ones.
    mixed = [
        dense(SETS[name].project(lo.LowRankOperator.from_dense(torch.tensor(nearest + 0.1 * o))))
        for o in others
    ]
    assert distance <= min(np.linalg.norm(o - W.numpy()) for o in others + mixed) + 1e-12


@every_ball
def test_projection_is_that_of_singular_values(ball):
    # Independent: minimise over vectors x >= 0 by sequential quadratic programming, keep U and V.
    W = normal(M, N, seed=7)
    U, s, Vh = np.linalg.svd(W.numpy())
    s = s[: ball.rank]
    constraint = {"type": "ineq", "fun": lambda x: slacks_of(ball, x)}
    solution = scipy.optimize.minimize(
        lambda x: np.sum((x - s) ** 2),
        s / 10,
        jac=lambda x: 2 * (x - s),
        bounds=[(0, None)] * len(s),
        constraints=constraint,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    expected = U[:, : len(s)] * solution.x @ Vh[: len(s)]
    got = dense(ball.project(lo.LowRankOperator.from_dense(W)))
    assert np.linalg.norm(got - W.numpy()) <= np.linalg.norm(expected - W.numpy()) + 1e-7


def slacks_of(ball, x):
    """The constraints written once more from their definition, smooth ones, >= 0 inside."""
    if isinstance(ball, lo.SingularValueBox):
        return np.array(ball.bounds) - x
    if isinstance(ball, lo.KyFanBall):
        subsets = itertools.combinations(x, min(ball.k, len(x)))
        return ball.radius - np.array([sum(subset) for subset in subsets])
    if math.isinf(ball.p):
        return ball.radius - x
    return ball.radius - np.sum(np.abs(x) ** ball.p, keepdims=True) ** (1 / ball.p)


def dual_norm(ball, G):
    """Support function of the set: sup of <G, W>, the dual gauge of the top values."""
    s = np.linalg.svd(G, compute_uv=False)[: ball.rank]
    if isinstance(ball, lo.SingularValueBox):
        return float(s @ np.array(ball.bounds[: len(s)]))
    if isinstance(ball, lo.KyFanBall):
        return ball.radius * max(s[0], s.sum() / min(ball.k, len(s)))
    q = {1: math.inf, math.inf: 1}.get(ball.p) or ball.p / (ball.p - 1)
    return ball.radius * float(np.linalg.norm(s, q))


GRADIENTS = {
    "operator": lo.LowRankOperator.from_dense,
    "dense": lambda G: G,
    "torch sparse": lambda G: G.to_sparse(),
    "scipy": lambda G: scipy.sparse.csr_matrix(G.numpy()),
}


@every_ball
@pytest.mark.parametrize("kind", GRADIENTS.values(), ids=GRADIENTS)
def test_lmo_attains_the_dual_norm(ball, kind):
    G = normal(M, N, seed=5)
    op = ball.lmo(kind(G))
    assert ball.contains(op)
    assert float(np.sum(G.numpy() * dense(op))) == pytest.approx(
        -dual_norm(ball, G.numpy()), rel=1e-11
    )


@functools.cache
def samples_of(name):
    g = torch.Generator().manual_seed(0)
    return [dense(SETS[name].sample((M, N), generator=g, dtype=D)) for _ in range(50)]


@pytest.mark.parametrize("name", sorted(SETS.keys() - {"rank"}))
@pytest.mark.parametrize("kind", GRADIENTS.values(), ids=GRADIENTS)
def test_lmo_is_below_samples(name, kind):
    feasible, G = SETS[name], normal(M, N, seed=6)
    op = feasible.lmo(kind(G))
    assert feasible.contains(op)
    assert (
        np.sum(G.numpy() * dense(op))
        <= min(np.sum(G.numpy() * W) for W in samples_of(name)) + 1e-12
    )


@pytest.mark.parametrize("name", sorted(SETS.keys() - {"rank"}))
def test_lmo_of_zero_is_a_member(name):
    assert SETS[name].contains(SETS[name].lmo(torch.zeros(M, N, dtype=D)))


@pytest.mark.parametrize("name", sorted(SETS.keys() - {"rank"}))
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_lmo_has_the_dtype_of_the_gradient(name, dtype):
    assert dtype == SETS[name].lmo(normal(M, N).to(dtype)).dtype


def test_lmo_of_unbounded_set_is_refused():
    with pytest.raises(OptionError, match=r"lmo needs a bounded set; got RankAtMost\(rank=2\)"):
        lo.RankAtMost(2).lmo(normal(M, N))


def test_default_lmo_of_a_user_set_finds_the_corner():
    class Capped(lo.SpectralSet):
        rank = 2

        def singular_value_excess(self, values):
            return (values - 1).amax()

        def project_singular_values(self, values):
            return values.clamp_max(1.0)

    G = normal(M, N)
    expected = -float(np.linalg.svd(G.numpy(), compute_uv=False)[:2].sum())
    assert np.sum(G.numpy() * dense(Capped().lmo(G))) == pytest.approx(expected, rel=1e-12)


def test_weighted_set_is_the_inner_set_of_the_unweighted_matrix():
    W, feasible = normal(M, N), SETS["weighted"]
    C = W.numpy() / np.linspace(0.5, 2, M)[:, None] / np.linspace(3, 1, N)
    s = np.linalg.svd(C, compute_uv=False)
    expected = max(s[3], s[:3].sum() - 2.0)
    assert feasible.excess(lo.LowRankOperator.from_dense(W)) == pytest.approx(expected, rel=1e-12)


def test_nested_set_counts_what_is_outside_its_spaces():
    e = torch.eye(M, dtype=D)
    feasible = lo.NestedSet(lo.SchattenBall(1, 2.0, 1), e[:, :1], torch.eye(N, dtype=D)[:, :1])
    W = torch.zeros(M, N, dtype=D)
    W[0, 0], W[3, 2] = 1.0, 0.3
    assert feasible.excess(lo.LowRankOperator.from_dense(W)) == pytest.approx(0.3)


def test_nested_set_refuses_what_is_outside_its_spaces():
    e = torch.eye(M, dtype=D)
    feasible = lo.NestedSet(lo.SchattenBall(1, 2.0, 1), e[:, :1], torch.eye(N, dtype=D)[:, :1])
    W = torch.zeros(M, N, dtype=D)
    W[0, 0] = 1.0
    assert feasible.contains(lo.LowRankOperator.from_dense(W))
    W[3, 2] = 1e-13
    assert not feasible.contains(lo.LowRankOperator.from_dense(W))


def test_nested_excess_of_trained_factors_raises_no_warning(recwarn):
    op = lo.LowRankOperator(normal(M, 1).requires_grad_(), torch.ones(1, dtype=D), normal(N, 1))
    SETS["nested"].excess(op)
    assert [] == list(recwarn)


def test_shifted_set_moves_the_ball():
    offset = diagonal(0.0, 0.0, 1.5)
    feasible = lo.ShiftedSet(lo.SchattenBall(1, 2.0, 2), offset)
    assert feasible.contains(diagonal(2.0) - offset)
    assert feasible.excess(diagonal(0.0) + 2 * offset) == pytest.approx(2.5)
    assert 5 == feasible.rank


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_set
def test_matrix_that_is_not_finite_is_no_member(feasible, value):
    left = torch.zeros(M, 1, dtype=D)
    left[0] = value
    op = lo.LowRankOperator(left, torch.ones(1, dtype=D), torch.zeros(N, 1, dtype=D))
    assert not feasible.contains(op)


@every_set
def test_zero_is_a_member_of_sets_about_zero(feasible):
    zero = lo.LowRankOperator.from_dense(torch.zeros(M, N, dtype=D))
    assert feasible.contains(zero) is not isinstance(feasible, lo.ShiftedSet)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make", [lambda x: lo.SchattenBall(1, x, 1), lambda x: lo.KyFanBall(1, x, 1)]
)
def test_bad_radius_is_refused(make, radius):
    with pytest.raises(
        RadiusError, match=rf"radius must be positive and finite; got radius={radius}"
    ):
        make(radius)


@pytest.mark.parametrize("p", [0.0, 0.99, -1.0, math.nan])
def test_bad_order_is_refused(p):
    with pytest.raises(RadiusError, match=rf"order p must be in \[1, inf\]; got p={p}"):
        lo.SchattenBall(p, 1.0, 1)


@pytest.mark.parametrize(
    "make",
    [lambda: lo.RankAtMost(0), lambda: lo.SchattenBall(1, 1.0, 0), lambda: lo.KyFanBall(1, 1.0, 0)],
)
def test_rank_zero_is_refused(make):
    with pytest.raises(RankError, match=r"rank must be at least 1; got rank=0"):
        make()


def test_ky_fan_order_zero_is_refused():
    with pytest.raises(RankError, match=r"Ky Fan order k must be at least 1; got k=0"):
        lo.KyFanBall(0, 1.0, 1)


@pytest.mark.parametrize("bounds", [[], [0.0], [-1.0, 1.0], [math.nan], [math.inf, 1.0]], ids=str)
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(
        RadiusError, match=r"bounds must be nonnegative and finite, with a positive one"
    ):
        lo.SingularValueBox(bounds)


@pytest.mark.parametrize(
    "weights", [[0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]], ids=str
)
@pytest.mark.parametrize("name", ["row_weights", "col_weights"])
def test_bad_weights_are_refused(name, weights):
    with pytest.raises(OptionError, match=rf"{name} must be positive and finite; got 2 values"):
        lo.WeightedSchattenBall(p=1, radius=1.0, rank=1, **{name: torch.tensor(weights)})
