"""Adapters of every class of the table come back from a folder as they were."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.nn import adapt, adapted_weights, inspect_adapter, load_adapter, save_adapter
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


TURNED = [e for e in EXAMPLES if e.name.startswith(("ETHER", "Orthogonal"))]


@pytest.mark.parametrize("example", TURNED, ids=lambda e: e.name)
def test_folder_holds_no_base_weight(example, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(8, 9)), torch.ones(8)
    fresh = copy.deepcopy(model)
    weight = model[0].weight.detach()
    made = example.make((9, 8), 2, dtype=torch.float32)

    def make(shape, *, weight):
        return type(made)(**{**made.options(), "weight": weight})

    adapt(model, make, targets="0")
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        nn.init.normal_(parameter)
    save_adapter(model, tmp_path)
    stored = load_file(tmp_path / "adapter.safetensors")
    assert not any(t.shape == weight.shape and torch.equal(t, weight) for t in stored.values())
    assert (tmp_path / "adapter.safetensors").stat().st_size < weight.nbytes + 2048
    other = nn.Sequential(nn.Linear(8, 9))
    with pytest.raises(TargetError, match=r"needs the one it was saved with; 0.weight/0/"):
        load_adapter(other, tmp_path)
    assert nn.Linear is type(other[0])
    assert torch.equal(model(x), load_adapter(copy.deepcopy(fresh), tmp_path)(x))
    assert torch.equal(model(x), load_adapter(fresh, tmp_path, make=make)(x))
    (site,) = inspect_adapter(tmp_path)
    assert site.bound == "needs the base weight" or site.bound.startswith("|R - I| = ")


class Own(lo.Parameterization):
    """A class that does not hold its options: only `make` makes it again."""

    def __init__(self, shape, rank=2):
        super().__init__(shape, rank)
        self.left = nn.Parameter(torch.zeros(shape[0], rank))
        self.right = nn.Parameter(torch.ones(shape[1], rank))

    @property
    def feasible_set(self):
        return lo.RankAtMost(self.rank)

    def factors(self):
        return lo.LowRankOperator(self.left, self.left.new_ones(self.rank), self.right)


def test_layers_of_one_shape_with_other_ranks_load_again(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    base = copy.deepcopy(model)
    adapt(model, Own, targets=".*", rank_pattern={"1": 3})
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            nn.init.normal_(p)
    save_adapter(model, tmp_path)
    again, x = load_adapter(base, tmp_path, make=Own), torch.randn(2, 4)
    assert torch.equal(model(x), again(x))
    assert [2, 3] == [found.updates[0].rank for found in adapted_weights(again)]
