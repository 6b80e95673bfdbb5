"""What is kept of factors is not used where a call is looked at, recorded or transformed."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank_opt as lo
from lowrank_opt.nn import adapt
from tests.builders import normal

X = normal(2, 6)


@pytest.fixture
def counted(monkeypatch):
    """Return an adapted model, and a list that grows with each evaluation of its factors."""
    model = torch.nn.Linear(6, 5).double()
    adapt(model, lambda shape: lo.NBLoRA(shape, 3, radius=0.5, dtype=torch.float64), targets=".*")
    count, factors = [], lo.NBLoRA.factors
    monkeypatch.setattr(lo.NBLoRA, "factors", lambda self: count.append(1) or factors(self))
    return model.eval(), count


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


BLOCKS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward mode": forward_ad.dual_level,
    "dispatch": Dispatched,
    "functions": Called,
    "hook": lambda: register_module_forward_pre_hook(lambda module, given: None),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_factors_are_evaluated_anew_where_calls_are_looked_at(counted, block):
    model, count = counted
    with torch.no_grad():
        model(X)
        with block():
            model(X)
    assert [1, 1] == count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("look", [torch.func.vmap, lambda f: torch.jit.trace(f, X, None, False)])
def test_factors_are_evaluated_anew_where_calls_are_transformed(counted, look):
    model, count = counted
    with torch.no_grad():
        model(X)
        look(model)(X)
    assert len(count) >= 2


def test_every_number_of_a_parameter_is_looked_at(counted):
    model, count = counted
    (rows,) = [p for name, p in model.named_parameters() if name.endswith("left_rows")]
    with torch.no_grad():
        for k in range(rows.numel()):
            model(X)
            rows.data.view(-1)[k] += 0.25
        model(X)
    assert rows.numel() + 1 == len(count)
