"""What sets answer for themselves: scalings, ranks, bounds and sums, against samples."""

import functools
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


class Plain(lo.FeasibleSet):
    """A Frobenius ball that writes what it must and answers as any set does."""

    rank = RANK

    def excess(self, op):
        return max(0.0, float(op.schatten_norm(2)) - 2.0)

    def unit(self, op):
        return 2.0

    def project(self, op):
        return lo.SchattenBall(2.0, 2.0, RANK).project(op)

    def sample(self, shape, *, generator=None, dtype=None):
        return lo.SchattenBall(2.0, 2.0, RANK).sample(shape, generator=generator, dtype=dtype)

    def lmo(self, gradient):
        return lo.SchattenBall(2.0, 2.0, RANK).lmo(gradient)


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
    "one direction": lo.ComplementSet(BALLS["nuclear"], frame(6, 5), None),
    "plain": Plain(),
}
every = pytest.mark.parametrize("feasible_set", SETS.values(), ids=SETS)


@functools.cache
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
    members = not feasible_set.truncates or feasible_set.contains(op.truncate(1))
    return members and feasible_set.truncated(2).contains(op.truncate(2))


def bounds_the_frobenius_norm(feasible_set, op) -> bool:
    return np.linalg.norm(dense(op)) <= feasible_set.frobenius_bound * (1 + 1e-12)


def averages(feasible_set, op) -> bool:
    half = feasible_set.scaled(0.5)
    other = 0.5 * samples(feasible_set, 1)[0]
    found = [
        feasible_set.averaged(sets, [0.25, 0.75], rank=5).contains(0.25 * op + 0.75 * other)
        for sets in ([feasible_set] * 2, [feasible_set, half])
    ]
    return all(found) or not feasible_set.contains(other)


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
def test_samples_of_every_rank_are_inside_and_on_the_boundary(name) -> None:
    found = samples(BALLS[name], 80)
    kinds = {(int((op.scale > 0).sum()), BALLS[name].excess(1.000001 * op) > 0) for op in found}
    assert {(rank, outside) for rank in (1, 2, 3) for outside in (True, False)} | {
        (0, False)
    } == kinds


def test_a_set_is_itself_once() -> None:
    assert all(SETS[name] is SETS[name].scaled(1.0) for name in (*BALLS, "plain"))


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


FROBENIUS = [2.0, 2 * 3 ** (1 / 6), 2 * 3**0.5, 2.0, 13.25**0.5, 3**0.5]


@pytest.mark.parametrize(("name", "bound"), [*zip(BALLS, FROBENIUS, strict=True)])
def test_bounds_on_the_frobenius_norm_are_attained(name, bound) -> None:
    assert BALLS[name].frobenius_bound == pytest.approx(bound)


def test_norms_are_those_of_radius_one() -> None:
    for name in set(BALLS) - {"box"}:
        assert (1.0, 1) == (BALLS[name].unit_ball.radius, BALLS[name].unit_ball.rank)
        assert type(BALLS[name]) is type(BALLS[name].unit_ball)


@pytest.mark.parametrize(
    ("sets", "weights", "expected"),
    [
        ([Elastic(2.0, 1), Elastic(4.0, 2)], [0.25, 0.75], Elastic(3.5, 3)),
        ([lo.KyFanBall(2, 2.0, 2), lo.KyFanBall(2, 1.0, 3)], [0.5, 0.5], lo.KyFanBall(2, 1.5, 4)),
        ([lo.KyFanBall(2, 2.0, 2), lo.KyFanBall(3, 2.0, 3)], [0.5, 0.5], lo.RankAtMost(4)),
        ([Elastic(2.0, 1), lo.SchattenBall(1.0, 2.0, 2)], [0.5, 0.5], lo.RankAtMost(3)),
        (
            [lo.SchattenBall(1.0, 2.0, 1), lo.SchattenBall(3.0, 1.0, 2)],
            [0.5, 0.25],
            lo.SchattenBall(3.0, 1.25, 3),
        ),
        ([lo.SchattenBall(1.0, 2.0, 1)] * 2, [0.3, 0.7000001], lo.SchattenBall(1.0, 2.0, 2)),
        (
            [lo.SingularValueBox([4.0]), lo.SingularValueBox([2.0, 1.0])],
            [0.25, 0.5],
            lo.SingularValueBox([2.0, 2.0, 0.5]),
        ),
        ([lo.SingularValueBox([4.0, 1.0])] * 2, [0.5, 0.5], lo.SingularValueBox([4, 4, 1, 1])),
        ([lo.SingularValueBox([4.0]), lo.RankAtMost(1)], [0.5, 0.5], lo.RankAtMost(2)),
    ],
    ids=str,
)
def test_averages_are_as_small_as_norms_say(sets, weights, expected) -> None:
    assert expected == sets[0].averaged(sets, weights, rank=4)


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("name", BALLS)
def test_the_best_member_is_the_same_for_every_size_of_the_gradient(name, size) -> None:
    values = torch.tensor([5.0, 2.0, 1.0], dtype=D)
    found = BALLS[name].support_singular_values(size * values)
    torch.testing.assert_close(found, BALLS[name].support_singular_values(values))


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


@pytest.mark.parametrize("name", [name for name in BALLS if name != "elastic"])
def test_far_outside_the_projection_is_the_member_farthest_along(name):
    """Two ways to one point: closed forms of projections, and of the linear oracle."""
    ball, values = BALLS[name], torch.tensor([3e20, 2e20, 1e20], dtype=D)
    found = ball.nearest_singular_values(values)
    assert torch.equal(found, ball.support_singular_values(values))
    torch.testing.assert_close(found, ball.project_singular_values(values), rtol=1e-9, atol=1e-9)
    # Members that are equally far are many where values are equal; one of them is the projection.
    alike = torch.tensor([3e20, 3e20, 1e20], dtype=D)
    torch.testing.assert_close(
        ball.nearest_singular_values(alike),
        ball.project_singular_values(alike),
        rtol=1e-9,
        atol=1e-9,
    )
