"""Which completion problems are convex, and which convex problem is behind them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.completion import CompletionProblem, OptimalityCertificate
from lowrank_opt.completion.certificates.convex_problem import convex_problem_of
from tests.completion_cases import ball, factored, normal, observe

OBSERVATIONS = observe(normal(6, 5), 0.8)
SHAPE = OBSERVATIONS.shape


class Scaled(lo.Parameterization):
    """``A diag(c) B^T``, and what is said otherwise."""

    def __init__(self, scale, *, frozen=False, learned=False, also=False, halved=False):
        super().__init__(SHAPE, 2)
        self.left = nn.Parameter(normal(6, 2))
        self.right = nn.Parameter(normal(5, 2), requires_grad=not frozen)
        self.scale = nn.Parameter(torch.tensor(scale).double(), requires_grad=learned)
        self.also = nn.Parameter(torch.zeros(1).double(), requires_grad=also)
        self.halved = halved

    def factors(self):
        left = self.left * 0.5 if self.halved else self.left
        return lo.LowRankOperator(left, self.scale, self.right)


class Unsupported(lo.SpectralSet):
    rank = 2

    def singular_value_excess(self, values):
        return values.amax() - 1

    def project_singular_values(self, values):
        return values.clamp_max(1.0)


BALL = lo.SchattenBall(math.inf, 1.5, 2)
CONVEX = {
    "a set": (BALL, {}, BALL, 1.0),
    "a chart": (ball(SHAPE, 2, 1.5), {}, lo.SchattenBall(1.0, 1.5, 2), 1.0),
    "without biases": (BALL, {"bias": None}, BALL, None),
    "free biases": (BALL, {"bias_penalty": 0.0}, BALL, None),
    "dear biases": (BALL, {"bias_penalty": 3.0}, BALL, 3.0),
    "a rank": (3, {"penalty": 2.0}, 2.0, 1.0),
    "two factors": (factored(SHAPE, 2), {"penalty": 3.0}, 3.0, 1.0),
    "twice two factors": (Scaled([2.0, 2.0]), {"penalty": 3.0}, 1.5, 1.0),
}
OTHERS = {
    "another loss": (BALL, {"loss": "huber"}),
    "a rank alone": (3, {}),
    "nothing": (None, {}),
    "nothing but a penalty": (None, {"penalty": 2.0}),
    "a penalty in a set": (BALL, {"penalty": 2.0}),
    "a penalty on a chart": (ball(SHAPE, 2, 1.5), {"penalty": 2.0}),
    "a set without a support function": (Unsupported(), {}),
    "negative": (Scaled([-2.0, -2.0]), {"penalty": 2.0}),
    "zero": (Scaled([0.0, 0.0]), {"penalty": 2.0}),
    "unequal": (Scaled([1.0, 2.0]), {"penalty": 2.0}),
    "a learned scale": (Scaled([1.0, 1.0], learned=True), {"penalty": 2.0}),
    "a frozen factor": (Scaled([1.0, 1.0], frozen=True), {"penalty": 2.0}),
    "a third parameter": (Scaled([1.0, 1.0], also=True), {"penalty": 2.0}),
    "a third one for a frozen one": (
        Scaled([1.0, 1.0], also=True, frozen=True),
        {"penalty": 2.0},
    ),
    "no parameter itself": (Scaled([1.0, 1.0], halved=True), {"penalty": 2.0}),
}


@pytest.mark.parametrize(("model", "options", "constraint", "bias"), CONVEX.values(), ids=CONVEX)
def test_the_convex_problem_behind(model, options, constraint, bias):
    fitted = observe(normal(6, 5), 0.5)
    found = convex_problem_of(CompletionProblem(OBSERVATIONS, model, **options), fitted)
    assert found is not None
    assert fitted is found.observations
    assert (constraint, bias) == (found.constraint, found.bias_penalty)


@pytest.mark.parametrize(("model", "options"), OTHERS.values(), ids=OTHERS)
def test_no_convex_problem_is_known_behind(model, options):
    assert (
        convex_problem_of(CompletionProblem(OBSERVATIONS, model, **options), OBSERVATIONS) is None
    )


def test_a_gap_is_never_rounded_down():
    generator = np.random.default_rng(0)
    sizes = generator.uniform(1, 2, (300, 2)) * 2.0 ** generator.integers(-40, 3, (300, 2))
    for objective, lower in np.sort(sizes)[:, ::-1].tolist():
        gap = OptimalityCertificate(objective, lower).gap
        assert Fraction(objective) - Fraction(lower) <= Fraction(gap)
        assert gap <= (objective - lower) * (1 + 2.0**-51)
