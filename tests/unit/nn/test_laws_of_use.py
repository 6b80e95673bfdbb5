"""Laws that held only in examples: nested routing, stacks that learn, what PEFT would ignore."""

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    LowRankLinear,
    adapt,
    disabled,
    export_peft,
    per_sample,
)
from lowrank_opt.parameterizations.catalog import examples


def ball(shape):
    return lo.NBLoRA(shape, min(2, *shape), radius=0.7)


def shaken(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks_of_per_sample_and_disabled_nest_in_any_order(depth):
    model = shaken(adapt(nn.Sequential(nn.Linear(4, 3)), ball, targets="0", name="a"), 1)
    model, x = shaken(adapt(model, ball, targets="0", name="b"), 2), torch.ones(2, 4)
    orders = [["a", "b"], ["b", "a"], [None, "a"]]

    def inside(level):
        with per_sample(model, orders[level]):
            before = model(x)
            if level + 1 < depth:
                inner = inside(level + 1)
                assert not torch.equal(before, inner)
            with disabled(model):
                base = model(x)
                with per_sample(model, orders[0]):
                    assert torch.equal(base, model(x))
            assert torch.equal(before, model(x))
        return before

    before = model(x)
    inside(0)
    assert torch.equal(before, model(x))


STACKED = [e for e in examples() if "weight" not in e.name.lower()]


@pytest.mark.parametrize("example", STACKED, ids=lambda e: e.name)
def test_stack_of_low_rank_layers_has_gradients_from_its_start(example):
    generator = torch.Generator().manual_seed(0)

    def layer(out, inputs):
        weight = example.make((out, inputs), 2, dtype=torch.float64)
        return LowRankLinear(weight, generator=generator)

    model = nn.Sequential(layer(6, 5), nn.Tanh(), layer(5, 6), nn.Tanh(), layer(4, 5)).double()
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    model(x).square().sum().backward()
    for index in (0, 2, 4):
        own = [p for p in model[index].weight.parameters() if p.requires_grad]
        assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in own)


def test_per_sample_refuses_buffers_that_were_changed_inside_the_block():
    model = adapt(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), ball, targets="0")
    x = torch.ones(2, 3)
    with per_sample(model, ["default", None]):
        model(x)
        model.load_state_dict({"1.running_mean": torch.ones(4)}, strict=False)
        with pytest.raises(AdapterStateError, match="'running_mean' of a BatchNorm1d was changed"):
            model(x)


class Mixer(nn.Module):
    """Reads the weight of a part, as the mixers of state space models do."""

    def __init__(self):
        super().__init__()
        self.dt_proj, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(x @ self.dt_proj.weight.T + self.dt_proj.bias)


class Inheriting(Mixer):
    """Reads the same weight, in a method that it inherits."""


class Tying(nn.Module):
    """Reads a weight once, to tie it, before there are adapters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.bias = self.first.bias
        nn.init.orthogonal_(self.first.weight)

    def forward(self, x):
        return self.second(self.first(x))


def test_export_takes_a_weight_that_is_read_in_the_constructor(tmp_path):
    model = adapt(nn.Sequential(Tying()), ball, targets="first")
    assert ["0.first"] == [site.name for site in export_peft(model, tmp_path)]


@pytest.mark.parametrize(
    ("build", "targets", "reader"),
    [
        (Mixer, "dt_proj", "Mixer"),
        (Inheriting, "dt_proj", "Inheriting"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), "linear1", "TransformerEncoderLayer"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), "linear2", "TransformerEncoderLayer"),
    ],
)
def test_export_refuses_a_weight_that_a_parent_reads(build, targets, reader, tmp_path):
    model = adapt(nn.Sequential(build()).eval(), ball, targets=targets)
    with pytest.raises(TargetError, match=f"{reader} reads its weight"):
        export_peft(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
