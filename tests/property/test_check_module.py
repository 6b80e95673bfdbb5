"""Modules that are no parameterizations keep the laws of maps, and the laws notice broken ones."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.testing import MODULE_LAWS, BrokenLawError, check_module
from tests.property.programs import raises_again


def linear(shape) -> nn.Linear:
    return nn.Linear(shape[1], shape[0], bias=False)


def contraction(shape, _rank) -> lo.SchattenBall:
    return lo.SchattenBall(math.inf, 1.0, min(shape))


def cayley(shape) -> nn.Module:
    return orthogonal(linear(shape), orthogonal_map="cayley")


class Product(nn.Module):
    def __init__(self, shape, rank):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(side, rank)) for side in shape)

    @property
    def w(self):
        return self.a @ self.b.mT


class Then(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, W):
        return self.change(W)


def changed(change, shape) -> nn.Module:
    layer = cayley(shape)
    parametrize.register_parametrization(layer, "weight", Then(change), unsafe=True)
    return layer


def noisy(W):
    return W * (1 - 0.01 * torch.rand(()))


def detached_row(W):
    return torch.cat((W[:1].detach(), W[1:]))


class Sticky(nn.Module):
    """Keeps the weight of its first call."""

    def __init__(self, shape, rank):
        super().__init__()
        self.inner = Product(shape, rank)
        self.kept = None

    @property
    def weight(self):
        if self.kept is None:
            self.kept = self.inner.w.detach()
        return self.kept + 0 * self.inner.w


SOUND = [
    (cayley, "weight", contraction),
    (partial(changed, lambda W: 0.5 * W), "weight", contraction),
    (Product, "w", None),
    (Product, lambda module: 2.0 * module.w, None),
    (orthogonal(nn.Linear(3, 5), orthogonal_map="matrix_exp"), "weight", contraction),
    (lambda: cayley((3, 4)), "weight", lo.SchattenBall(math.inf, 1.0, 3)),
]
BROKEN = [
    (partial(changed, lambda W: 1.001 * W), contraction, "membership"),
    (partial(changed, lambda W: W + 0.1), contraction, "membership"),
    (partial(changed, lambda W: W.float().to(W) * (1 + 1e-6)), contraction, "membership"),
    (partial(changed, noisy), contraction, "purity"),
    (partial(changed, detached_row), contraction, "smoothness"),
    (cayley, lo.RankAtMost(1), "rank"),
    (Sticky, None, "in_place"),
]


@pytest.mark.parametrize(("make", "weight", "feasible_set"), SOUND)
def test_sound_modules_keep_the_laws(make, weight, feasible_set) -> None:
    verdicts = check_module(make, weight=weight, feasible_set=feasible_set, profile="quick")
    assert [law.name for law in MODULE_LAWS] == [v.check for v in verdicts]
    assert {v.status for v in verdicts} <= {"passed", "skipped"}


@pytest.mark.parametrize(("make", "feasible_set", "law"), BROKEN)
def test_law_catches_defect_of_a_module(make, feasible_set, law) -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_module(make, feasible_set=feasible_set, only=[law])
    assert law == caught.value.law
    raises_again(caught.value, make=make, feasible_set=feasible_set)


def test_counter_example_has_the_options() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_module(Product, weight="w", feasible_set=lo.RankAtMost(1), only=["rank"])
    assert "weight='w', feasible_set=RankAtMost(rank=1))" in caught.value.code
    with pytest.raises(BrokenLawError):
        exec(caught.value.code)


@pytest.mark.parametrize(
    ("make", "weight", "message"),
    [
        (nn.Linear(3, 4), "wieght", "weight must name a tensor of the module: .*'wieght'"),
        (nn.Linear(3, 4), "bias", "the weight must be a tensor of two or more axes"),
        (lambda shape: shape, "weight", "make must return an nn.Module; got tuple"),
        (3, "weight", "make must be a module or return one; got int"),
    ],
)
def test_what_is_no_module_is_refused(make, weight, message) -> None:
    with pytest.raises(TargetError, match=message):
        check_module(make, weight=weight)
