"""Adapted models under torch's own tools: copies, pickle, compile, autocast, state dicts."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, merge, unmerge

MAKES: dict[str, Callable[[tuple[int, int]], lo.Parameterization]] = {
    "NBLoRA": partial(lo.NBLoRA, rank=2, radius=0.5),
    "HomogeneousBall": partial(lo.HomogeneousBall, rank=2, radius=2.0),
    "DeLoRA": partial(lo.DeLoRA, rank=2, radius=2.0),
    "Offset": lambda shape: lo.Offset(lo.Factored(shape, 2)),
}


class Attending(nn.Module):
    """Convolution, attention and a linear layer, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).transpose(1, 2)
        return self.linear(self.attention(h, h, h)[0])


def adapted(make: str = "NBLoRA") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = adapt(Attending(), MAKES[make], targets=".*")
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model, torch.randn(2, 4, 5)


@pytest.mark.parametrize("make", MAKES)
def test_whole_graph_compiles_with_its_gradient(make: str) -> None:
    model, x = adapted(make)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(model(x), compiled(x))
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    compiled(x).square().sum().backward()
    torch.testing.assert_close(expected, [p.grad for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent_and_equal(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, x = adapted()
    other, expected = copied(model), model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(expected, other(x))


def test_copy_of_a_merged_model_can_be_unmerged() -> None:
    model, x = adapted()
    expected = model(x)
    merge(model)
    other = copy.deepcopy(model)
    unmerge(other)
    assert torch.equal(expected, other(x))


def test_state_dict_restores_an_adapted_model() -> None:
    model, x = adapted()
    other = adapt(Attending(), MAKES["NBLoRA"], targets=".*")
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


def test_inference_mode_and_autocast() -> None:
    model, x = adapted()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.bfloat16 == model(x).dtype


def test_conversion_moves_base_and_adapter_together() -> None:
    model, x = adapted()
    torch.testing.assert_close(model(x).double(), model.double()(x.double()), rtol=1e-4, atol=1e-5)


def test_merged_conversion_keeps_the_base_at_hand() -> None:
    model, _ = adapted()
    merge(model)
    model.double()
    unmerge(model)
    assert {torch.float64} == {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("mode", [True, False])
def test_fast_path_of_the_transformer_layer_sees_the_adapter(mode: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    adapt(layer, MAKES["NBLoRA"], targets="all-linear")
    for parameter in (p for p in layer.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8)
    expected = layer(x)
    with torch.set_grad_enabled(mode):
        torch.testing.assert_close(expected, layer(x))
