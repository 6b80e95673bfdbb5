"""What declared sets promise about aggregates."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import NotInSetError
from lowrank_opt.merging import aggregate
from lowrank_opt.merging.federated.rules import FederatedMethod
from tests.unit.merging.cases import (
    METHODS,
    M,
    N,
    R,
)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    p=st.sampled_from([1.0, 1.5, 2.0, math.inf]),
    count=st.integers(1, 4),
    method=st.sampled_from(METHODS),
)
def test_declared_set_contains_the_update(
    seed: int, p: float, count: int, method: FederatedMethod
) -> None:
    g = torch.Generator().manual_seed(seed)
    ball = lo.SchattenBall(p, 2.0, R)
    clients = [ball.sample((M, N), generator=g, dtype=torch.float64) for _ in range(count)]
    if method == "ffa":
        clients = [clients[0]] * count
    result = aggregate(clients, method, feasible_set=ball)
    assert result.feasible_set.contains(result.update)
    bounded = method in ("flora", "fedex", "flexlora", "ffa") or count == 1
    assert bounded == isinstance(result.feasible_set, lo.SchattenBall)


SETS = [
    (lo.KyFanBall(2, 1.0, R), lo.KyFanBall(2, 1.0, 2 * R)),
    (lo.SingularValueBox([2.0, 0.5]), lo.SingularValueBox([2.0, 2.0, 0.5, 0.5])),
    (lo.RankAtMost(R), lo.RankAtMost(2 * R)),
    (lo.SchattenBall(1, 1.0, R), lo.SchattenBall(1, 1.0, 2 * R)),
]


@pytest.mark.parametrize(("declared", "expected"), SETS)
def test_average_set_of_equal_sets(declared: lo.SchattenBall, expected: lo.SchattenBall) -> None:
    assert expected == declared.averaged([declared] * 2, [0.3, 0.7], rank=99)


@pytest.mark.parametrize(("declared", "expected"), SETS)
def test_average_set_contains_averages(
    declared: lo.SchattenBall, expected: lo.SchattenBall
) -> None:
    g = torch.Generator().manual_seed(0)
    pairs = [[declared.sample((M, N), generator=g) for _ in range(2)] for _ in range(30)]
    assert all(expected.contains(0.3 * a + 0.7 * b) for a, b in pairs)


def test_average_set_of_balls_of_different_order_and_radius() -> None:
    sets = [lo.SchattenBall(1, 2.0, 2), lo.SchattenBall(math.inf, 1.0, 3)]
    assert lo.SchattenBall(math.inf, 1.25, 5) == sets[0].averaged(sets, [0.25, 0.75], rank=9)


def test_boxes_of_different_lengths_average_by_weyl() -> None:
    sets = [lo.SingularValueBox([4.0]), lo.SingularValueBox([2.0, 2.0])]
    average = sets[0].averaged(sets, [0.5, 0.5], rank=9)
    assert lo.SingularValueBox([3.0, 3.0, 1.0]) == average


def test_weighted_sets_keep_their_weights() -> None:
    weights = torch.rand(M, generator=torch.Generator().manual_seed(0)) + 0.5
    ball = lo.WeightedSchattenBall(p=1, radius=1.0, rank=R, row_weights=weights)
    g = torch.Generator().manual_seed(0)
    clients = [ball.sample((M, N), generator=g) for _ in range(3)]
    result = aggregate(clients, "flora", feasible_set=ball)
    assert isinstance(result.feasible_set, type(ball))
    assert result.feasible_set.contains(result.update)
    # The truncated SVD of W is not that of the weighted matrix: no norm bound follows.
    assert lo.RankAtMost(R) == aggregate(clients, "flexlora", feasible_set=ball).feasible_set


def test_parameterizations_declare_their_sets() -> None:
    g = torch.Generator().manual_seed(0)
    clients = [lo.NBLoRA((M, N), rank=R, radius=d, generator=g) for d in (1.0, 3.0)]
    for client in clients:
        nn.init.normal_(next(client.parameters()), generator=g)
    result = aggregate(clients, "flora", weights=[0.5, 0.5])
    assert 2.0 == result.feasible_set.frobenius_bound / math.sqrt(2 * R)
    assert result.feasible_set.contains(result.update)


@pytest.mark.parametrize(
    ("feasible_set", "member"),
    [
        (lo.SchattenBall(1, 2.0, 3), [2.0, 0.0, 0.0]),
        (lo.SchattenBall(4, 2.0, 3), [2 * 3**-0.25] * 3),
        (lo.KyFanBall(2, 2.0, 3), [2.0, 0.0, 0.0]),
        (lo.KyFanBall(2, 2.0, 9), [1.0] * 9),
        (lo.SingularValueBox([3.0, 4.0]), [4.0, 3.0]),
    ],
)
def test_frobenius_bound_is_attained(feasible_set: lo.SchattenBall, member: list[float]) -> None:
    op = lo.LowRankOperator.from_dense(torch.diag(torch.tensor(member, dtype=torch.float64)))
    assert feasible_set.contains(op)
    assert feasible_set.frobenius_bound == pytest.approx(float(op.schatten_norm(2)))


def test_client_outside_its_set_is_refused() -> None:
    client = lo.LowRankOperator.from_dense(torch.eye(3))
    with pytest.raises(NotInSetError, match="client 1 exceeds"):
        aggregate([0.1 * client, client], feasible_set=lo.SchattenBall(1, 1.0, 3))
