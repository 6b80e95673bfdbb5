"""An adapted weight that is read is summed when its numbers are needed, and not before."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights, switch
from lowrank_opt.nn.adapters.change import Change
from tests.oracles import normal

X = normal(2, 6)


class Asking(nn.Module):
    """Looks at the dtype of a layer before it is called, as blocks of T5 do."""

    def __init__(self):
        super().__init__()
        self.wo = nn.Linear(6, 5).double()

    def forward(self, x):
        known = isinstance(self.wo.weight, torch.Tensor)
        if known and x.dtype != self.wo.weight.dtype and self.wo.weight.dtype != torch.int8:
            x = x.to(self.wo.weight.dtype)
        return self.wo(x)


def ball(shape):
    return lo.NBLoRA(shape, 2, radius=0.5, dtype=torch.float64)


@pytest.fixture
def model():
    model = adapt(Asking(), ball, targets="wo")
    fill(model, 0)
    return model


def fill(model, seed):
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.copy_(normal(*p.shape, seed=seed + k))


@pytest.fixture
def sums(monkeypatch):
    """A list that grows with each weight that is summed."""
    found, add = [], Change.add_dense
    monkeypatch.setattr(Change, "add_dense", lambda self, w: found.append(1) or add(self, w))
    return found


def truth(model, i=0):
    update = adapted_weights(model)[i].updates[0]()
    return model.wo._parameters["weight"] + update.to_dense()


def test_a_parent_that_asks_for_the_dtype_sums_nothing(model, sums):
    expected = X @ truth(model).mT + model.wo.bias
    torch.testing.assert_close(
        model(X.float()), X.float().double() @ truth(model).mT + model.wo.bias
    )
    torch.testing.assert_close(model(X), expected)
    assert [] == sums


FACTS = {
    "dtype": lambda w: w.dtype,
    "device": lambda w: w.device,
    "shape": lambda w: w.shape,
    "ndim": lambda w: w.ndim,
    "layout": lambda w: w.layout,
    "requires_grad": lambda w: w.requires_grad,
    "size": lambda w: w.size(0),
    "numel": lambda w: w.numel(),
    "floating": lambda w: w.is_floating_point(),
    "parameter": lambda w: isinstance(w, nn.Parameter),
}


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
def test_facts_are_those_of_the_sum_and_need_none(fact, model, sums):
    found = fact(model.wo.weight)
    assert [] == sums
    summed = model.wo.weight
    assert summed.sum().isfinite()
    assert [1] == sums
    with torch._C.DisableTorchFunctionSubclass():
        expected = fact(nn.Parameter(truth(model).detach()))
    assert expected == found


def test_a_weight_that_is_used_twice_is_summed_once_with_its_gradient(model, sums):
    own = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(2 * truth(model).square().sum(), own)
    weight = model.wo.weight
    found = torch.autograd.grad(torch.cat([weight, weight]).square().sum(), own)
    torch.testing.assert_close(found, expected)
    assert [1] == sums


def test_a_weight_is_of_the_adapter_that_counted_when_it_was_read(model):
    read, expected = model.wo.weight, truth(model).detach()
    adapt(model, ball, targets="wo", name="other")
    fill(model, 10)
    torch.testing.assert_close(read.detach().clone(), expected)
    torch.testing.assert_close(model.wo.weight.detach().clone(), truth(model, 1).detach())
    switch(model, "default")
    torch.testing.assert_close(model.wo.weight.detach().clone(), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_copies_are_of_the_sum(copied, model):
    torch.testing.assert_close(copied(model.wo.weight).data, truth(model).detach())
