"""What a caller trained of the base model, and froze again, is written; what was not, never."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, load_adapter, save_adapter, unload
from lowrank_opt.nn.adapters.prints import PRINTS, is_changed, note_base, print_of


def make(shape):
    return lo.Factored(shape, 1)


def built():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4), nn.Linear(4, 2))


def call(model):
    return model[3](model[1](model[0](torch.ones(2, 3))) + model[2](torch.tensor([1, 2])))


def written(model, folder):
    save_adapter(model, folder)
    found = json.loads((folder / "adapter.json").read_text())["trained"]
    return [place for entry in found for place in entry["places"]]


def train(p):
    with torch.no_grad():
        p.view(-1)[-1].add_(1e-6)


CHANGES = {
    "norm": lambda model: train(model[1].weight),
    "bias": lambda model: train(model[0].bias),
    "one row of a table": lambda model: train(model[2].weight),
    "another parameter": lambda model: setattr(model[1], "bias", nn.Parameter(torch.ones(4))),
    "behind its back": lambda model: model[1].bias.data.fill_(2),
    "the adapted weight": lambda model: train(model[0]._parameters["weight"]),
}
THEN = {
    "as it is": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "wider": lambda model: model.double(),
    "wider and back": lambda model: model.double().float(),
    "state dict": lambda model: resumed(model.state_dict()),
}


def resumed(state):
    model = adapt(built(), make, targets="0")
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("change", CHANGES)
def test_trained_and_frozen_parameter_is_saved(change, then, tmp_path):
    model = adapt(built(), make, targets="0")
    CHANGES[change](model.requires_grad_(True))
    model = THEN[then](model).requires_grad_(False)
    assert 1 == len(written(model, tmp_path))
    fresh = load_adapter(built().to(model[3].weight.dtype), tmp_path)
    for key, p in model.state_dict().items():
        if "lowrank" not in key and key not in ("0.weight", "0.bias"):
            prefix, _, leaf = key.rpartition(".")
            assert torch.equal(p, getattr(fresh.get_submodule(prefix), leaf))
    assert torch.equal(model[0].weight, fresh[0].weight)
    assert torch.equal(model[0].bias, fresh[0].bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_nothing_is_written_that_was_not_trained(dtype, tmp_path):
    model = adapt(built(), make, targets="0").requires_grad_(True)
    assert [] == written(model, tmp_path)
    assert [] == written(copy.deepcopy(model).to(dtype), tmp_path)
    assert [] == written(copy.deepcopy(model).to(dtype).float(), tmp_path)


def test_change_below_the_rounding_of_a_narrow_dtype_counts(tmp_path):
    model = adapt(built(), make, targets="0")
    with torch.no_grad():
        model[1].weight.add_(2.0**-20)
    assert ["1.weight"] == written(model, tmp_path)


def test_base_that_is_loaded_after_adapting_is_the_base(tmp_path):
    model = adapt(built(), make, targets="0")
    model.load_state_dict({k: 2 * x for k, x in built().state_dict().items()}, strict=False)
    assert [] == written(model, tmp_path)


def test_nothing_is_left_after_unloading():
    model = unload(adapt(built(), make, targets="0"))
    assert not any(PRINTS in vars(module) for module in model.modules())
    assert not any(module._load_state_dict_post_hooks for module in model.modules())


@pytest.mark.parametrize("size", [(), (0,), (1,), (3,), (4097,), (2, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int8])
def test_every_entry_and_its_place_count(size, dtype):
    module = nn.Module()
    x = torch.randn(size).mul(9).to(dtype)
    module.weight = nn.Parameter(x.clone(), requires_grad=False)
    note_base(module)
    assert not is_changed(module, "weight", module.weight)
    for i in {0, x.numel() // 2, x.numel() - 1} if x.numel() else ():
        y = x.clone().flatten()
        y[i] += 1
        assert is_changed(module, "weight", nn.Parameter(y.view(size), requires_grad=False))
    for i in {1, x.numel() - 1} if x.numel() > 1 else ():
        y = x.clone().flatten()
        y[[0, i]] = y[[i, 0]]
        differs = not torch.equal(y, x.flatten())
        changed = nn.Parameter(y.view(size), requires_grad=False)
        assert differs == is_changed(module, "weight", changed)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.arange(0.0), (0, 0)),
        (torch.arange(2.0), (3855081281029144576, 3855081281029144576)),
        (torch.arange(3.0), (31837091985436742848, 3855081281029144576)),
        (torch.arange(9001.0), (24879183981891822462, 2390410268153741312)),
        (torch.arange(5).bfloat16(), (35428776216023569600, 7446765511615971328)),
        (torch.arange(6).view(2, 3).mT, (-4233346410392763077, -6046671729228938911)),
    ],
)
def test_prints_are_those_that_folders_of_before_hold(x, expected):
    # Of version 2 of the folder, which holds prints of the base weights of rotations.
    assert expected == print_of(x)
