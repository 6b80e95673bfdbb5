"""Stacked evaluation equals that of the members, in value and gradient."""

import math
from functools import partial

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.errors import ShapeError
from lowrank_opt.parameterizations.batched import stacks
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.certificate import certify, certify_each

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


def _alike_and_unlike(make):
    """Three members of each of two kinds, taking turns."""
    others = [lo.NBLoRA(SHAPE, 3, radius=0.25), lo.Factored(SHAPE, 2), lo.NBLoRA(SHAPE, 3)]
    return [x for pair in zip(_members(make), others, strict=True) for x in pair]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_stacks_hold_each_member_once_with_its_certificate(make):
    members = _alike_and_unlike(make)
    found = {}
    for positions, op in stacks(members):
        sets = [members[i].feasible_set for i in positions]
        values, certificates = certify_each(op.detach(), sets)
        rows = zip(positions, op.to_dense(), values, certificates, strict=True)
        found |= {i: (*rest,) for i, *rest in rows}
    assert list(range(6)) == sorted(found)
    for i, member in enumerate(members):
        dense, values, certificate = found[i]
        expected = member.certify()
        torch.testing.assert_close(dense, member().to_dense(), rtol=1e-5, atol=1e-6)
        near = pytest.approx(member().singular_values().tolist(), rel=1e-5, abs=1e-6)
        assert near == values.tolist()
        ours, theirs = ((x.feasible_set.bound, x.rank, x.holds) for x in (certificate, expected))
        assert theirs == ours
        ours = (*certificate.singular_values, certificate.excess, certificate.tolerance)
        theirs = (*expected.singular_values, expected.excess, expected.tolerance)
        assert pytest.approx(theirs, rel=1e-5, abs=1e-6) == ours


def test_alike_members_are_in_one_stack():
    members = _alike_and_unlike(partial(lo.NBLoRA, SHAPE, 3, radius=0.25))
    assert [[0, 1, 2, 4], [3], [5]] == [positions for positions, _ in stacks(members)]


class Branching(lo.Parameterization):
    """Computes what depends on its numbers."""

    def __init__(self, shape):
        super().__init__(shape, 1)
        self.left = torch.nn.Parameter(torch.ones(shape[0], 1))
        self.right = torch.nn.Parameter(torch.ones(shape[1], 1))

    def factors(self):
        sign = 1.0 if float(self.left.detach().sum()) > 0 else -2.0
        return lo.LowRankOperator(self.left, self.left.new_full((1,), sign), self.right)


def test_maps_with_branches_are_evaluated_one_by_one():
    members = [Branching(SHAPE), Branching(SHAPE)]
    torch.nn.init.constant_(members[1].left, -1.0)
    found = {i: op for (i,), op in stacks(members)}
    assert [1.0, -2.0] == [float(found[i].scale) for i in (0, 1)]


def test_hooked_members_are_evaluated_one_by_one():
    members = [lo.NBLoRA(SHAPE, 3) for _ in range(3)]
    handle = members[1].register_forward_hook(lambda *_: None)
    assert [[0, 2], [1]] == [positions for positions, _ in stacks(members)]
    handle.remove()


def test_certificates_of_values_in_the_wrong_set_do_not_hold():
    op = lo.BatchedParameterization(_members(MAKERS["Factored"])).factors().detach()
    sets = [lo.SchattenBall(p, 1e-3, rank) for p, rank in ((2, 3), (2, 3), (math.inf, 1))]
    _, certificates = certify_each(op, sets)
    alone = [certify(lo.LowRankOperator(*(x[i] for x in op)), s).excess for i, s in enumerate(sets)]
    assert pytest.approx(alone, rel=1e-9) == [x.excess for x in certificates]
    assert not any(x.holds for x in certificates)
