"""Which updates are alike is remembered from pass to pass, while the model is what it was."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, remove_adapter, switch
from lowrank_opt.nn.adapters import together
from tests.unit.nn.test_together import (
    LAYERS,
    X,
    adapted,
    alone,
    assert_close,
    counted,
    gradients,
    members,
    whole,
)

__all__ = ["counted"]


def check(model):
    """Expect outputs and gradients of a pass to be those of single layers."""
    found = []
    for call in (whole, alone):
        y = call(model, X)
        found.append((y, *(g for g in gradients(model, y.square().sum()) if g is not None)))
    assert_close(*found)


@pytest.fixture
def looked(monkeypatch):
    """Return a list that grows with each update whose likeness to others is found out."""
    count, member = [], together._member
    monkeypatch.setattr(together, "_member", lambda x: count.append(x) or member(x))
    return count


def test_alike_updates_are_found_once_in_many_passes(looked, counted):
    model = adapted()
    for k in range(3):
        whole(model, X).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1 * k).step()
    assert LAYERS == len(looked)
    assert [LAYERS] * 3 == counted
    model.eval()
    check(model)
    assert 2 * LAYERS == len(looked)


def frozen(model):
    for p in members(model)[1].parameters():
        p.requires_grad_(False)


def half_frozen(model):
    next(members(model)[2].parameters()).requires_grad_(False)


def hooked(model):
    members(model)[0].register_forward_hook(lambda module, args, op: 0.5 * op)


def watched(model):
    next(members(model)[3].parameters()).register_hook(lambda g: 2 * g)


def watched_as_a_module(model):
    members(model)[3].register_full_backward_hook(lambda *_: None)


def another_parameter(model):
    member = members(model)[2]
    member.left_rows = nn.Parameter(0.5 * member.left_rows.detach())


def another_radius(model):
    members(model)[1]._set = lo.SchattenBall(1.0, 0.1, 2)


def without_a_layer(model):
    del model[1]


def turned(model):
    p = next(members(model)[1].parameters())
    p.data = torch._neg_view(p.data)


def wider(model):
    members(model)[0].float()


CHANGES = [
    frozen, half_frozen, hooked, watched, watched_as_a_module, another_parameter, another_radius,
    without_a_layer, turned, wider,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_passes_counts(change):
    model = adapted()
    check(model)
    change(model)
    check(model)
    check(model)


@pytest.mark.parametrize("change", [frozen, half_frozen])
def test_what_is_trained_again_is_evaluated_with_the_others_again(change, counted):
    model = adapted()
    change(model)
    whole(model, X)
    for p in model.parameters():
        p.requires_grad_(True)
    whole(model, X)
    assert [LAYERS - 1, LAYERS] == counted


def test_adapters_that_are_switched_are_each_evaluated_together(counted):
    model = adapted()
    adapt(model, lambda shape: lo.NBLoRA(shape, 2, radius=0.1), targets=".*", name="other")
    for name in ("other", "default", "other"):
        switch(model, name)
        check(model)
    assert [LAYERS] * 3 == counted


def test_nothing_of_an_adapter_that_was_removed_is_held():
    model = adapted()
    adapt(model, lambda shape: lo.NBLoRA(shape, 2, radius=0.1), targets=".*", name="other")
    switch(model, "other")
    whole(model, X).sum().backward()
    held = weakref.ref(members(model)[-1])
    switch(model, "default")
    remove_adapter(model, "other")
    gc.collect()
    assert held() is None


def test_a_copy_finds_its_own_updates(counted):
    model = adapted()
    check(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(members(other)[0].parameters()).mul_(2)
    check(other)
    check(model)
    assert [LAYERS] * 3 == counted
