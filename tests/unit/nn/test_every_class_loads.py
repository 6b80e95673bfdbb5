"""Adapters of every class of the table come back from a folder as they were."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_opt.nn import adapt, load_adapter, save_adapter
from lowrank_opt.parameterizations.catalog import examples

EXAMPLES = [e for e in examples() if "WeightDecomposed" not in e.name]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_a_saved_adapter_is_loaded_bit_by_bit(example, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh, x = nn.Sequential(nn.Linear(8, 9)), nn.Sequential(nn.Linear(8, 9)), torch.ones(8)
    fresh.load_state_dict(model.state_dict())
    adapt(model, lambda shape: example.make(shape, 2, dtype=torch.float32), targets="0")
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        nn.init.normal_(parameter)
    trained = model(x)
    save_adapter(model, tmp_path)
    assert not torch.equal(trained, fresh(x))
    assert torch.equal(trained, load_adapter(fresh, tmp_path)(x))
