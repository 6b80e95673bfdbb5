"""Which layers a target names: all linear ones as for PEFT, and none is skipped in silence."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.nn import LowRankLinear, adapt
from tests.adapted import adapted_layers


def ball(shape):
    return lo.NBLoRA(shape, 2, radius=0.5)


class Speaker(nn.Module):
    """A model that tells its output layer, as those of transformers do."""

    def __init__(self, *, tied: bool):
        super().__init__()
        self.table, self.body = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.head, self.score = nn.Linear(4, 5, bias=False), nn.Linear(4, 2)
        if tied:
            self.head.weight = self.table.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize("exclude", [(), ("head", "score")])
@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_leaves_out_output_layers_and_what_is_trained(tied, exclude):
    model = nn.ModuleDict({"inside": Speaker(tied=tied)})
    # To exclude them besides is no error.
    adapt(model, ball, targets="all-linear", exclude=exclude, modules_to_train="score")
    assert ["inside.body"] == adapted_layers(model)


def of_integers() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


class Quantised(nn.Module):
    """A layer of another package, which is only called like ours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


Quantised.__name__ = "Linear"

BARREN = [
    (of_integers, r"its weight holds torch\.int8"),
    (lambda: nn.LazyLinear(4), "its weight is not there yet, call the model once"),
    (Quantised, "no matrix of its own"),
]


@pytest.mark.parametrize(("make", "message"), BARREN)
@pytest.mark.parametrize("targets", ["all-linear", "0|1", ["0", "1|0"], lambda name, _: bool(name)])
def test_a_target_that_is_not_adaptable_is_never_skipped(make, message, targets):
    model = nn.Sequential(nn.Linear(4, 4), make(), nn.ReLU())
    with pytest.raises(OptionError, match=rf"must be adaptable; got 1 \(.*{message}"):
        adapt(model, ball, targets=targets)
    assert not any(hasattr(layer, "lowrank_adapters") for layer in model)
    assert ["0"] == adapted_layers(adapt(model, ball, targets=targets, exclude="1"))


class Mixed(nn.Module):
    """A parametrization that has a layer inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.inner(weight)


@pytest.mark.parametrize("targets", [".*", "all-linear", lambda name, _: bool(name)])
def test_what_computes_a_weight_is_no_layer(targets):
    model = nn.Sequential(nn.Linear(4, 4), LowRankLinear(ball((4, 4))), nn.Linear(4, 4))
    parametrize.register_parametrization(model[2], "weight", Mixed())
    assert ["0", "2"] == adapted_layers(adapt(model, ball, targets=targets))
