"""The part of a gap that is not the rank's, against dense projections and a planted optimum."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import ConvexProblem, certify_completion
from lowrank_opt.completion.certificates.at_rank import gap_at_rank
from lowrank_opt.completion.model.bias import no_bias
from tests.completion_cases import normal, observe

RADIUS = 6.0


def dense_gap(
    observations: lo.Observations,
    op: lo.LowRankOperator,
    ball: lo.SchattenBall,
    A: torch.Tensor | None = None,
    B: torch.Tensor | None = None,
) -> float:
    """Maximise the dual bound over multiples of the gradient, all of it dense.

    With features A and B the tangent space is that of C, where ``W = A C B^T``.
    """
    W, v = op.to_dense(), observations.values
    i, j = observations.rows, observations.cols
    residual = W[i, j] - v
    G = torch.zeros_like(W).index_put((i, j), residual)
    if A is not None:
        G, W = A.mT @ G, torch.linalg.pinv(A) @ W
    if B is not None:
        G, W = G @ B, W @ torch.linalg.pinv(B).mT
    U, _, Vh = torch.linalg.svd(W)
    r = op.rank
    P, Q = U[:, :r] @ U[:, :r].T, Vh[:r].T @ Vh[:r]
    tangent = P @ G + G @ Q - P @ G @ Q
    values = torch.linalg.svdvals(tangent)
    q = torch.inf if ball.p == 1 else 2
    support = ball.radius * float(torch.linalg.vector_norm(values[: ball.lmo_rank], q))
    best = 0.0
    quadratic = float(residual.square().sum())
    slope = -float(residual @ v) - support
    if slope > 0:
        best = slope**2 / (2 * quadratic)
    return 0.5 * quadratic - best


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_equals_the_dense_computation(p: float, rank: int) -> None:
    observations = observe(normal(9, 7, seed=1), 0.8)
    ball = lo.SchattenBall(p, RADIUS, rank)
    op = ball.project(lo.LowRankOperator.from_dense(normal(9, 7, seed=2)).truncate(rank))
    found = gap_at_rank(ConvexProblem(observations, ball), op, no_bias(observations))
    assert found.full
    assert found.amount == pytest.approx(dense_gap(observations, op, ball), rel=1e-9)


def test_is_the_whole_gap_where_the_rank_is_full() -> None:
    # All of the space is tangent then: nothing is left for the rank to cost.
    observations = observe(normal(6, 4, seed=1), 0.9)
    problem = ConvexProblem(observations, lo.SchattenBall(1, RADIUS, 4))
    op = lo.LowRankOperator.from_dense(normal(6, 4, seed=3) * 0.2)
    whole = certify_completion(problem, op).gap
    assert gap_at_rank(problem, op, no_bias(observations)).amount == pytest.approx(whole, rel=1e-9)


def test_weights_on_rows_and_columns_are_those_of_the_inner_matrix() -> None:
    # D W E in the ball: the problem in C = D W E with entries divided by the weights is the same.
    observations = observe(normal(8, 6, seed=4), 0.9)
    a, b = (0.5 + normal(size, seed=size).abs() for size in (8, 6))
    weighted = lo.WeightedSet(lo.SchattenBall(1, RADIUS, 2), a, b)
    result = lo.complete(
        observations,
        lo.Weighted(lo.HomogeneousBall((8, 6), 2, radius=RADIUS, dtype=torch.float64), a, b),
        bias=None,
        solver=lo.solvers.LBFGS(tolerance=1e-12, gap=None, max_iterations=5000),
    )
    problem = ConvexProblem(observations, weighted)
    gap = certify_completion(problem, result.operator, result.bias).gap
    found = gap_at_rank(problem, result.operator, result.bias)
    assert found.full
    assert found.amount <= 1e-3 * gap  # stationary, and far from the optimum of any rank
    # The planted defect: a tangent space of W itself instead of C finds what is not there.
    unweighted = gap_at_rank(
        ConvexProblem(observations, lo.SchattenBall(1, RADIUS, 2)), result.operator, result.bias
    )
    assert unweighted.amount > 1e-2 * gap


def test_offsets_are_taken_into_account() -> None:
    observations = observe(normal(8, 6, seed=4), 0.9)
    offset = lo.LowRankOperator.from_dense(normal(8, 6, seed=5)).truncate(2)
    ball = lo.SchattenBall(1, RADIUS, 2)
    W = ball.project(lo.LowRankOperator.from_dense(normal(8, 6, seed=6)).truncate(2))
    shifted = lo.ShiftedSet(ball, offset)
    moved = observations.with_values(
        observations.values + offset.entries(observations.rows, observations.cols)
    )
    there = gap_at_rank(ConvexProblem(observations, shifted), W - offset, no_bias(observations))
    here = gap_at_rank(ConvexProblem(moved, ball), W, no_bias(moved))
    assert there.amount == pytest.approx(here.amount, rel=1e-9)


@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_features_move_the_tangent_space(sides: str) -> None:
    observations = observe(normal(8, 6, seed=4), 0.9)
    A = normal(8, 5, seed=5) if sides != "right" else None
    B = normal(6, 4, seed=6).to_sparse() if sides != "left" else None
    ball = lo.SchattenBall(1, RADIUS, 2)
    image = lo.ImageSet(ball, A, B)
    shape = (8 if A is None else 5, 6 if B is None else 4)
    C = ball.project(lo.LowRankOperator.from_dense(normal(*shape)))
    op = 0.5 * image.embed(C)
    found = gap_at_rank(ConvexProblem(observations, image), op, no_bias(observations))
    dense_B = None if B is None else B.to_dense()
    assert found.amount == pytest.approx(dense_gap(observations, op, ball, A, dense_B), rel=1e-9)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_a_penalty_bounds_the_multiples(size: float) -> None:
    observations = observe(size * normal(9, 7, seed=1), 0.8)
    op = size * lo.LowRankOperator.from_dense(normal(9, 7, seed=2)).truncate(2)
    amount = 0.3 * size
    found = gap_at_rank(ConvexProblem(observations, amount), op, no_bias(observations))
    W, v = op.to_dense(), observations.values
    i, j = observations.rows, observations.cols
    residual = W[i, j] - v
    G = torch.zeros_like(W).index_put((i, j), residual)
    U, s, V = op.thin_svd()
    P, Q = U @ U.mT, V @ V.mT
    top = float(torch.linalg.svdvals(P @ G + G @ Q - P @ G @ Q)[0])
    linear, quadratic = -float(residual @ v), float(residual.square().sum())
    t = min(max(linear, 0.0) / quadratic, amount / top)
    expected = 0.5 * quadratic + amount * float(s.sum()) - t * (linear - 0.5 * t * quadratic)
    assert found.amount == pytest.approx(max(expected, 0.0), rel=1e-9)
    assert 0 < t


def test_an_exact_fit_has_its_penalty_as_the_gap() -> None:
    observations = lo.Observations.from_dense(torch.diag(torch.tensor([2.0, 1.0])).double())
    eye = torch.eye(2, dtype=torch.float64)
    op = lo.LowRankOperator(eye, torch.tensor([2.0, 1.0]).double(), eye)
    found = gap_at_rank(ConvexProblem(observations, 0.5), op, no_bias(observations))
    assert found.amount == pytest.approx(1.5)
    ball = ConvexProblem(observations, lo.SchattenBall(1, 5.0, 2))
    assert gap_at_rank(ball, op, no_bias(observations)).amount <= 1e-20


@pytest.mark.parametrize("constraint", [0.5, lo.SchattenBall(1, 5.0, 2)], ids=["penalty", "ball"])
@pytest.mark.parametrize(("second", "full"), [(1e-6, False), (2e-4, True)])
def test_small_columns_are_a_way_out(constraint, second: float, full: bool) -> None:
    observations = observe(normal(5, 4), 0.9)
    eye = torch.eye(5, 2, dtype=torch.float64)
    op = lo.LowRankOperator(eye, torch.tensor([2.0, 2 * second]).double(), eye[:4])
    found = gap_at_rank(ConvexProblem(observations, constraint), op, no_bias(observations))
    assert full == found.full


def test_what_is_not_finite_has_no_end() -> None:
    observations = observe(normal(5, 4), 0.9)
    op = lo.LowRankOperator.from_dense(normal(5, 4)) * torch.inf
    found = gap_at_rank(ConvexProblem(observations, 0.5), op, no_bias(observations))
    assert (torch.inf, False) == (found.amount, found.full)
