"""Who asks an adapted weight for its dtype gets it without a sum; who may compute gets the sum."""

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, adapted_weights
from lowrank_opt.nn.adapters.change import Change
from tests.oracles import normal

X = normal(2, 6)


class Asking(nn.Module):
    """Looks at the dtype of a layer before it is called, as blocks of T5 do."""

    def __init__(self):
        super().__init__()
        self.wo = nn.Linear(6, 5).double()

    def forward(self, x):
        if (
            isinstance(self.wo.weight, torch.Tensor)
            and x.dtype != self.wo.weight.dtype
            and self.wo.weight.dtype != torch.int8
        ):
            x = x.to(self.wo.weight.dtype)
        return self.wo(x)


@pytest.fixture
def model():
    model = adapt(
        Asking(), lambda s: lo.NBLoRA(s, 2, radius=0.5, dtype=torch.float64), targets="wo"
    )
    with torch.no_grad():
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.copy_(normal(*p.shape, seed=k))
    return model


@pytest.fixture
def sums(monkeypatch):
    """A list that grows with each weight that is summed."""
    found, add = [], Change.add_dense
    monkeypatch.setattr(Change, "add_dense", lambda self, w: found.append(1) or add(self, w))
    return found


def truth(model):
    return model.wo._parameters["weight"] + adapted_weights(model)[0].updates[0]().to_dense()


@pytest.mark.parametrize("x", [X, X.float()], ids=["same", "narrower"])
def test_a_parent_that_asks_for_the_dtype_sums_nothing(model, sums, x):
    torch.testing.assert_close(model(x), x.double() @ truth(model).mT + model.wo.bias)
    assert [] == sums


CERTAIN = {
    "dtype": (lambda layer: layer.weight.dtype, torch.float64),
    "device": (lambda layer: layer.weight.device, torch.device("cpu")),
    "shape": (lambda layer: layer.weight.shape, (5, 6)),
    "row count": (lambda layer: layer.weight.shape[0], 5),
    "parameter": (lambda layer: isinstance(layer.weight, nn.Parameter), True),
    "tensor": (lambda layer: isinstance(layer.weight, Tensor), True),
}


@pytest.mark.parametrize(("ask", "expected"), CERTAIN.values(), ids=CERTAIN)
def test_facts_need_no_sum(ask, expected, model, sums):
    assert expected == ask(model.wo)
    assert [] == sums


def kept(layer):
    weight = layer.weight
    assert weight.dtype == torch.float64
    return weight


def through_a_lookalike(layer):
    found = []

    def isinstance(x, kind):
        found.append(x)

    isinstance(layer.weight, Tensor)
    return found[0]


def taken(x, kind):
    return x


UNCERTAIN = {
    "kept": kept,
    "another function": lambda layer: taken(layer.weight, Tensor),
    "lookalike": through_a_lookalike,
    "by name": lambda layer: getattr(layer, "weight"),  # noqa: B009
    "either": lambda layer: layer.weight if layer.weight.dtype == torch.float64 else None,
    "argument": lambda layer: Tensor.clone(layer.weight),
    "method": lambda layer: layer.weight.clone(),
    "data": lambda layer: layer.weight.data,
}


@pytest.mark.parametrize("read", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_may_be_computed_with_is_the_sum(read, model, sums):
    torch.testing.assert_close(read(model.wo).detach().clone(), truth(model).detach())
    assert [1] == sums


def test_buffers_of_an_adapter_are_no_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    adapt(model, lambda s: lo.Factored(s, 1), targets="0")
    assert not isinstance(model[1].running_mean, nn.Parameter)
    assert torch.float32 == model[1].running_mean.dtype
