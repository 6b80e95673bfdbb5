"""Factors are evaluated once while nothing that they are made of changes, and never stale."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, disabled, merge, unload, unmerge
from lowrank_opt.nn.adapters.adapted import present_updates
from lowrank_opt.nn.basis import memory
from lowrank_opt.testing.laws import adapter_moves as moves
from lowrank_opt.testing.laws.adapter_play import Play
from lowrank_opt.testing.search.verdict import Violation
from tests.oracles import normal
from tests.property.adapter_stages import STAGES

X = normal(2, 6)


def ball(shape):
    return lo.NBLoRA(shape, 2, radius=0.5, dtype=torch.float64)


def adapted(make=ball):
    torch.manual_seed(0)
    model = adapt(nn.Linear(6, 5).double(), make, targets=".*").eval()
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.copy_(normal(*p.shape, seed=k))
    return model


def update(model):
    return adapted_weights(model)[0].updates[0]


@pytest.fixture
def counted(monkeypatch):
    """Return an adapted model, and a list that grows with each evaluation of its factors."""
    count, factors = [], lo.NBLoRA.factors
    monkeypatch.setattr(lo.NBLoRA, "factors", lambda self: count.append(1) or factors(self))
    model = adapted()
    count.clear()
    return model, count


def test_factors_are_evaluated_once_without_gradients(counted):
    model, count = counted
    with torch.no_grad():
        first = model(X)
        assert all(torch.equal(first, model(X)) for _ in range(3))
    assert [1] == count


def test_factors_of_a_frozen_adapter_are_evaluated_once_with_gradients(counted):
    model, count = counted
    model.requires_grad_(False)
    x = X.clone().requires_grad_()
    for _ in range(3):
        model(x).sum().backward()
    assert [1] == count


def test_factors_are_evaluated_at_each_step_of_training(counted):
    model, count = counted
    for _ in range(3):
        model(X).sum().backward()
    assert [1, 1, 1] == count


def in_place(member):
    next(member.parameters()).mul_(1.5)


def through_data(member):
    next(member.parameters()).data[0, 0] += 0.25


def through_numpy(member):
    next(member.parameters()).detach().numpy()[1] = 0.5


def new_data(member):
    parameter = next(member.parameters())
    parameter.data = 2 * parameter.data


def new_parameter(member):
    name, parameter = next(iter(member.named_parameters()))
    setattr(member, name, nn.Parameter(0.5 * parameter))


def loaded(member):
    member.load_state_dict({key: 0.5 * x for key, x in member.state_dict().items()})


def assigned(member):
    member.load_state_dict({k: 0.5 * x for k, x in member.state_dict().items()}, assign=True)


def stepped(member):
    free = list(member.parameters())
    for p in free:
        p.grad = torch.ones_like(p)
    torch.optim.Adam(free, 0.1).step()


def hooked(member):
    member.register_forward_hook(lambda module, args, op: 0.5 * op)


def rounded(member):
    member.float()


WRITES = [
    in_place, through_data, through_numpy, new_data, new_parameter, loaded, assigned, stepped,
    hooked, rounded,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_no_factor_is_stale(write):
    model = adapted()
    with torch.no_grad():
        before = model(X)
        write(update(model))
        truth = X @ (model._parameters["weight"] + update(model)().to_dense().double()).mT
        torch.testing.assert_close(model(X), truth + model.bias)
        assert not torch.equal(before, model(X))


def test_a_change_of_what_is_no_tensor_is_seen():
    class Times(lo.Parameterization):
        def __init__(self):
            super().__init__((5, 6), 1)
            self.left, self.factor = nn.Parameter(torch.ones(5, 1).double()), 1.0

        @property
        def feasible_set(self):
            return lo.RankAtMost(1)

        def factors(self):
            return lo.LowRankOperator(
                self.left, self.left.new_ones(1), self.factor * self.left.new_ones(6, 1)
            )

    model = adapted(lambda shape: Times())
    with torch.no_grad():
        before = model(X)
        next(m for m in model.modules() if isinstance(m, Times)).factor = 3.0
        assert not torch.equal(before, model(X))


@pytest.mark.parametrize("held", [[1.0], {"at": 1.0}], ids=["list", "dict"])
def test_a_change_inside_of_what_is_no_tensor_is_seen(held):
    class Scaled(lo.NBLoRA):
        def factors(self):
            (factor,) = held if isinstance(held, list) else held.values()
            return super().factors() * factor

    model = adapted(lambda shape: Scaled(shape, 2, radius=0.5, dtype=torch.float64))
    update(model).held = held
    with torch.no_grad():
        before = model(X)
        held[0 if isinstance(held, list) else "at"] = 3.0
        assert not torch.equal(before, model(X))


class Sum(lo.Parameterization):
    """A sum of parts, of which some may be missing."""

    def __init__(self, shape):
        super().__init__(shape, 2)
        self.parts = nn.ModuleList(lo.NBLoRA(shape, 1, dtype=torch.float64) for _ in range(2))

    def factors(self):
        first, *rest = (part() for part in self.parts)
        return sum(rest, start=first)


def without_a_part(member):
    del member.parts[1]


def with_parts_in_turn(member):
    a, b = member.parts
    b.load_state_dict({key: 0.5 * x for key, x in a.state_dict().items()})


@pytest.mark.parametrize("write", [without_a_part, with_parts_in_turn])
def test_changes_of_parts_are_seen(write):
    model = adapted(Sum)
    with torch.no_grad():
        before = model(X)
        write(update(model))
        truth = X @ (model._parameters["weight"] + update(model)().to_dense()).mT + model.bias
        torch.testing.assert_close(model(X), truth)
        assert not torch.equal(before, model(X))


@pytest.mark.parametrize(
    ("x", "y", "same"),
    [
        (normal(3, 4), normal(3, 4), True),
        (normal(3, 4), normal(3, 4).mT.contiguous().mT, True),
        (normal(3, 4), normal(3, 4).reshape(4, 3), False),
        (normal(3, 4), normal(3, 4, seed=1), False),
        (normal(3, 4)[1:], normal(3, 4)[1:].clone(), True),
        (normal(3, 4)[:, 1:], normal(3, 4)[:, 1:].clone(), True),
        # What lies between the columns of a view is none of its numbers.
        (torch.arange(8.0).view(2, 4)[:, ::3], torch.arange(8.0).view(2, 4)[:, ::3].clone(), True),
        (torch.tensor([0.0, 0, 0, 1])[::3], torch.zeros(2), False),
        (torch.zeros(2), -torch.zeros(2), False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
    ],
)
@pytest.mark.parametrize("compared", ["memory", "entries"])
def test_numbers_are_compared(x, y, same, compared, monkeypatch):
    if compared == "entries":
        monkeypatch.setattr(memory, "_COMPARE", None)
        same = torch.equal(x, y)
    assert same is memory.same_numbers(x, y)


class Labelled(torch.Tensor):
    """Of a class of its own, whose memory may be anything."""


@pytest.mark.parametrize(
    ("x", "legible"),
    [
        (normal(2, 2), True),
        (nn.Parameter(normal(2, 2)), True),
        (normal(2, 2).to("meta"), False),
        (normal(2, 2).to_sparse(), False),
        (normal(2, 2).as_subclass(Labelled), False),
        (torch._neg_view(normal(2, 2)), False),
        (torch.view_as_complex(normal(2, 2)).conj(), False),
    ],
)
def test_numbers_are_read_from_memory_where_they_stand_there(x, legible):
    assert legible is memory.is_legible(x)


def test_signs_that_are_still_to_be_turned_are_seen():
    model = adapted()
    parameter = next(update(model).parameters())
    with torch.no_grad():
        before = model(X)
        # The same memory, read with another sign.
        parameter.data = torch._neg_view(parameter.data)
        truth = X @ (model._parameters["weight"] + update(model)().to_dense()).mT + model.bias
        torch.testing.assert_close(model(X), truth)
        assert not torch.equal(before, model(X))


def test_a_token_takes_few_calls_of_this_package():
    model, calls = adapted(), []
    home = str(Path(lo.__file__).parent)

    def seen(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(home):
            calls.append(frame.f_code.co_name)

    with torch.no_grad():
        model(X)
        sys.setprofile(seen)
        try:
            model(X)
        finally:
            sys.setprofile(None)
    # 55 in the general case, which is taken where several adapters or magnitudes count.
    assert 20 <= len(calls) <= 36, calls


def test_a_number_may_become_an_array():
    model = adapted()
    with torch.no_grad():
        update(model).note = 1.0
        before = model(X)
        update(model).note = torch.ones(3)
        torch.testing.assert_close(model(X), before)


def test_nothing_is_kept_of_a_map_that_draws():
    class Drawn(lo.NBLoRA):
        def factors(self):
            op = super().factors()
            return lo.LowRankOperator(op.left * torch.rand(()), op.scale, op.right)

    model = adapted(lambda shape: Drawn(shape, 2, radius=0.5, dtype=torch.float64))
    with torch.no_grad():
        assert not torch.equal(model(X), model(X))


def test_writes_into_factors_that_were_handed_out_change_nothing():
    model = adapted()
    with torch.no_grad():
        before = model(X)
        for x in present_updates(model, "weight")[0]:
            x.mul_(3)
        torch.testing.assert_close(model(X), before, rtol=0, atol=0)


def test_present_updates_are_those_that_are_added_now():
    model = adapted()
    (op,) = present_updates(model, "weight")
    assert torch.equal(op.to_dense(), update(model)().to_dense())
    merge(model)
    assert [] == present_updates(model, "weight")
    unmerge(model)
    with disabled(model):
        assert [] == present_updates(model, "weight")
    assert [] == present_updates(unload(model), "weight")


def test_nothing_is_kept_of_numbers_that_a_transform_sees():
    model = adapted()
    with torch.no_grad():
        model(X)
    names = {key: 2 * p for key, p in model.named_parameters() if "lowrank_adapters" in key}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, p in other.named_parameters():
            p.copy_(names.get(key, p))
        found = torch.func.functional_call(model, names, (X,))
        torch.testing.assert_close(found, other(X))


def test_modes_do_not_share_factors():
    model = adapted().requires_grad_(False)
    with torch.inference_mode():
        model(X)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


def test_the_law_catches_factors_that_are_compared_by_version(monkeypatch):
    steps = [
        ("adapt", {"name": "a", "head": False}),
        (moves.write, {"name": "a", "through_data": True}),
    ]

    def played():
        play = Play(STAGES["linear"], lambda s: lo.NBLoRA(s, 2, radius=0.7))
        for step, arguments in steps:
            play.step(step, **arguments)

    played()
    monkeypatch.setattr(memory.Copy, "is_of", lambda self, x: True)
    with pytest.raises(Violation, match="is off by"):
        played()
