"""Stacked evaluation equals that of the members, in value and gradient."""

import math
from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.parameterizations.catalog import examples

SHAPE = (7, 5)


MAKERS = {
    e.name: partial(e.make, SHAPE, 3, dtype=torch.float32)
    for e in examples()
    if "WeightDecomposed" not in e.name
}


def _members(make):
    generator = torch.Generator().manual_seed(0)
    members = [make() for _ in range(3)]
    for parameter in (p for m in members for p in m.parameters()):
        torch.nn.init.normal_(parameter, generator=generator)
    return members


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_values_batched(make):
    members = _members(make)
    stacked = lo.BatchedParameterization(members)().to_dense()
    expected = torch.stack([m().to_dense() for m in members])
    torch.testing.assert_close(stacked, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_gradients_batched(make):
    members = _members(make)
    parameters = [p for m in members for p in m.parameters()]
    one_by_one = sum(m().to_dense().square().sum() for m in members)
    expected = torch.autograd.grad(one_by_one, parameters)
    stacked = lo.BatchedParameterization(members)().to_dense().square().sum()
    got = torch.autograd.grad(stacked, parameters)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_unstack_gives_one_operator_each():
    members = _members(MAKERS["NBLoRA(radius)"])
    ops = lo.BatchedParameterization(members).unstack()
    assert [SHAPE] * 3 == [op.shape for op in ops]


def test_optimizer_steps_reach_members():
    members = _members(MAKERS["NBLoRA(radius)"])
    batch = lo.BatchedParameterization(members)
    assert {id(p) for m in members for p in m.parameters()} == {id(p) for p in batch.parameters()}


def test_singular_values_batched():
    members = _members(MAKERS["NBLoRA(radius)"])
    values = lo.BatchedParameterization(members)().singular_values()
    assert (3, 3) == tuple(values.shape)
    assert float(values.detach().max()) <= 1.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [lo.NBLoRA(SHAPE, 3, radius=2.0), lo.NBLoRA(SHAPE, 3, radius=1.0)],
        [lo.NBLoRA(SHAPE, 3), lo.NBLoRA(SHAPE, 2)],
        [lo.NBLoRA(SHAPE, 3), lo.NBLoRA(SHAPE, 3, dtype=torch.float64)],
        [lo.NBLoRA(SHAPE, 3, p=math.inf), lo.DeLoRA(SHAPE, 3, radius=1.0)],
    ],
    ids=["none", "radius", "rank", "dtype", "class"],
)
def test_unlike_members_are_refused(members):
    with pytest.raises(ShapeError, match=r"batch"):
        lo.BatchedParameterization(members)
