"""What sets answer for themselves: scalings, ranks, bounds and sums, against samples."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from tests.oracles import D, dense, normal

SHAPE, RANK = (6, 5), 3


@dataclass(frozen=True)
class Elastic(lo.NormBall):
    """Of one's own, with the inherited answers."""

    radius: float
    rank: int
    norm_name = "elastic"

    def gauge(self, values):
        return torch.maximum(values.abs().sum(), 2 * values.abs().amax())

    def project_singular_values(self, values):
        return values * min(1.0, self.radius / float(self.gauge(values).clamp_min(1e-300)))


def frame(rows: int, cols: int) -> torch.Tensor:
    return torch.linalg.qr(normal(rows, cols)).Q


BALLS = {
    "nuclear": lo.SchattenBall(1.0, 2.0, RANK),
    "Schatten-3": lo.SchattenBall(3.0, 2.0, RANK),
    "spectral": lo.SchattenBall(math.inf, 2.0, RANK),
    "Ky Fan": lo.KyFanBall(2, 2.0, RANK),
    "box": lo.SingularValueBox([3.0, 2.0, 0.5]),
    "elastic": Elastic(2.0, RANK),
}
SETS = {
    **BALLS,
    "rank": lo.RankAtMost(RANK),
    "weighted": lo.WeightedSet(BALLS["nuclear"], torch.linspace(0.5, 2, 6, dtype=D), None),
    "nested": lo.NestedSet(BALLS["spectral"], frame(6, 4), frame(5, 4)),
    "features": lo.ImageSet(BALLS["Schatten-3"], normal(6, 4), normal(5, 3)),
    "shifted": lo.ShiftedSet(BALLS["nuclear"], lo.LowRankOperator.from_dense(normal(6, 5), 1)),
    "complement": lo.ComplementSet(BALLS["nuclear"], frame(6, 2), frame(5, 1)),
}
every = pytest.mark.parametrize("feasible_set", SETS.values(), ids=SETS)


def samples(feasible_set: lo.FeasibleSet, count: int = 20) -> list[lo.LowRankOperator]:
    generator = torch.Generator().manual_seed(0)
    return [feasible_set.sample(SHAPE, generator=generator, dtype=D) for _ in range(count)]


def failing(answer, feasible_set: lo.FeasibleSet) -> list[lo.LowRankOperator]:
    """Return the members for which an answer of a set is wrong."""
    return [op for op in samples(feasible_set) if not answer(feasible_set, op)]


def scales(feasible_set, op) -> bool:
    return all(feasible_set.scaled(t).contains(t * op) for t in (0.5, 1.0, 3.0))


def lowers_the_rank(feasible_set, op) -> bool:
    lower = feasible_set.with_rank(1)
    return lower.rank <= max(1, feasible_set.rank) and (
        op.singular_values().count_nonzero() > 1 or lower.contains(op)
    )


def truncates(feasible_set, op) -> bool:
    return feasible_set.truncated(2).contains(op.truncate(2))


def bounds_the_frobenius_norm(feasible_set, op) -> bool:
    return np.linalg.norm(dense(op)) <= feasible_set.frobenius_bound * (1 + 1e-12)


def averages(feasible_set, op) -> bool:
    other = samples(feasible_set, 1)[0]
    mean = feasible_set.averaged([feasible_set] * 2, [0.25, 0.75], rank=5)
    return mean.contains(0.25 * op + 0.75 * other)


ANSWERS = [scales, lowers_the_rank, truncates, bounds_the_frobenius_norm, averages]


@every
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda f: f.__name__)
def test_every_set_answers_truly(feasible_set, answer) -> None:
    assert [] == failing(answer, feasible_set)


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_dominating_values_are_members_on_the_boundary(ball) -> None:
    for op in samples(ball):
        values = torch.nn.functional.pad(op.singular_values(), (0, RANK))[:RANK]
        above = ball.dominating(values)
        assert bool((above >= values * (1 - 1e-12)).all())
        assert abs(float(ball.singular_value_excess(above))) <= 1e-9 * ball.unit(op)


@pytest.mark.parametrize("name", ["nuclear", "spectral", "Ky Fan", "box", "elastic"])
def test_the_bound_says_norm_and_size(name: str) -> None:
    said = {
        "nuclear": "nuclear <= 2",
        "spectral": "spectral <= 2",
        "Ky Fan": "Ky Fan-2 <= 2",
        "box": "singular values <= 3, ...",
        "elastic": "elastic <= 2",
    }
    assert said[name] == BALLS[name].bound


def test_unbounded_sets_claim_no_norm() -> None:
    assert "none" == SETS["rank"].norm_name == lo.WeightedSet(SETS["rank"]).norm_name
    assert math.inf == SETS["rank"].frobenius_bound


# Sets with one wrong answer each, and who must notice.


class ScalesNot(Elastic):
    def scaled(self, factor):
        return self


class KeepsRank(Elastic):
    def with_rank(self, rank):
        return Elastic(self.radius / 2, rank)


class ForgetsTheRoot(Elastic):
    @property
    def frobenius_bound(self):
        return self.radius / 3


class AveragesRadiiWrongly(Elastic):
    def averaged(self, sets, weights, *, rank):
        return Elastic(self.radius * min(weights), rank)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (ScalesNot, scales),
        (KeepsRank, lowers_the_rank),
        (KeepsRank, truncates),
        (ForgetsTheRoot, bounds_the_frobenius_norm),
        (AveragesRadiiWrongly, averages),
    ],
)
def test_a_wrong_answer_is_noticed(kind, answer) -> None:
    assert [] != failing(answer, kind(2.0, RANK))
