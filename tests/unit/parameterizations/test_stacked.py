"""Members that are evaluated together: what is shared, what is written, which gradients arrive."""

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.parameterizations.source import Source
from lowrank_opt.parameterizations.together import evaluate_together
from tests.builders import normal

D = torch.float64


class Projected(lo.Parameterization):
    """A product with a frozen matrix that members may share, and a part that may be missing."""

    def __init__(self, frozen, part=None):
        super().__init__((4, 3), 2)
        self.frozen = nn.Parameter(frozen, requires_grad=False)
        self.left = nn.Parameter(normal(4, 2))
        self.right = nn.Parameter(normal(3, 2, seed=1))
        self.part = part

    def factors(self):
        if self.part is not None:
            self.part.count = object()
        return lo.LowRankOperator(self.frozen @ self.left, self.left.new_ones(2), self.right)


def test_what_members_share_is_there_once():
    shared = normal(4, 4)
    frozen = nn.Parameter(shared, requires_grad=False)
    members = [Projected(shared) for _ in range(3)]
    for member in members:
        member.frozen = frozen
    ops, copies = evaluate_together(members)
    assert copies[0][id(frozen)] is copies[2][id(frozen)]
    for op, member in zip(ops, members, strict=True):
        torch.testing.assert_close(op.left, member().left, rtol=1e-14, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
def test_factors_that_are_not_used_leave_their_parameters_without_a_gradient(create_graph):
    members = [Projected(normal(4, 4, seed=k)) for k in range(2)]
    ops, _ = evaluate_together(members)
    free = [x for member in members for x in (member.left, member.right)]
    loss = ops[0].left.square().sum()
    found = torch.autograd.grad(loss, free, create_graph=create_graph, allow_unused=True)
    expected = 2 * members[0].frozen.mT @ members[0]().left
    torch.testing.assert_close(found[0], expected, rtol=1e-13, atol=0)
    assert [None, None, None] == list(found[1:])


def test_a_part_that_is_written_to_is_told():
    with pytest.raises(RuntimeError, match="sets attributes"):
        evaluate_together([Projected(normal(4, 4), part=nn.Identity()) for _ in range(2)])


def test_a_source_is_what_the_member_was():
    member = Projected(normal(4, 4))
    before = member().left.detach()
    tensors = dict(member.named_parameters())
    source = Source.of(member, tensors.values())
    member.part = nn.Identity()
    torch.testing.assert_close(source.evaluate(tensors).left, before, rtol=0, atol=0)


def test_a_part_that_is_none_is_left_alone():
    members = [Projected(normal(4, 4)) for _ in range(2)]
    for member in members:
        member.register_module("missing", None)
    ops, _ = evaluate_together(members)
    torch.testing.assert_close(ops[1].left, members[1]().left, rtol=1e-14, atol=0)
