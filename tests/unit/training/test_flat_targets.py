"""Flat-LoRA perturbs the adapted weights and no other, by equation (7) in every kind of layer."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import lowrank_opt as lo
from lowrank_opt.nn import AdapterStateError, adapt, adapted_weights, merge, switch, unload
from lowrank_opt.training import FlatPerturbation
from lowrank_opt.training.perturbation.row_scale import filter_scale
from lowrank_opt.training.perturbation.seeded_noise import mix_seed

SIGMA = 0.3


class Conv1D(nn.Module):
    """What GPT-2's layers are: the weight stands in_features x out_features."""

    def __init__(self, out_features, in_features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


def adapted(layer, targets=".*"):
    torch.manual_seed(0)
    model = adapt(layer.double(), lambda s: lo.Factored(s, 2), targets=targets)
    for part in (x for x in model.modules() if isinstance(x, lo.Factored)):
        nn.init.normal_(part.left, std=0.3)
    return model


def plain(model):
    return unload(copy.deepcopy(model))


def perturbation(model, **options):
    return FlatPerturbation(model, sigma=SIGMA, total_steps=1, schedule=lambda _: 1.0, **options)


def noisy_weights(model, axis=0):
    """W + dW + noise for each adapted weight, densely, from equation (7)."""
    found = {}
    for adapted_weight in adapted_weights(model):
        name, W = adapted_weight.name, adapted_weight.slot.parameter.detach()
        merged = W + adapted_weight.updates[0]().detach().to_dense().reshape(W.shape)
        rows = merged.movedim(axis, 0).flatten(1)
        shape = [-1 if k == axis else 1 for k in range(W.ndim)]
        std = (SIGMA * rows.norm(dim=1) / math.sqrt(rows.shape[1])).view(shape)
        g = torch.Generator().manual_seed(mix_seed(0, 0, name))
        found[name] = merged + std * torch.randn(W.shape, generator=g, dtype=W.dtype)
    return found


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.memory = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", ["attention.in_proj_weight", "attention.out_proj.weight"]),
        ("memory", ["memory.weight_ih_l0", "memory.weight_hh_l0"]),
        ("head", ["head.weight"]),
    ],
)
def test_exactly_the_adapted_weights_are_perturbed(targets, expected):
    assert expected == perturbation(adapted(Model(), targets)).names


def two_adapters():
    """A on the first layer, B on the second one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    for name, targets in (("a", "0"), ("b", "1")):
        adapt(model, lambda s: lo.Factored(s, 1, dtype=torch.float64), targets=targets, name=name)
    for update in (x for x in model.modules() if isinstance(x, lo.Factored)):
        nn.init.ones_(update.left)
    return model


@pytest.mark.parametrize(
    ("active", "expected"),
    [("a", ["0.weight"]), ("b", ["1.weight"]), ("ab", ["0.weight", "1.weight"])],
)
def test_adapters_that_are_off_are_not_perturbed(active, expected):
    model = two_adapters()
    switch(model, *active)
    assert expected == perturbation(model).names


@pytest.mark.parametrize("turn_off", [switch, merge])
def test_adapted_models_without_an_active_adapter_are_refused(turn_off):
    model = two_adapters()
    turn_off(model)
    with pytest.raises(AdapterStateError, match=r"an adapter must be active .* got none"):
        perturbation(model)
    assert ["0.weight"] == perturbation(model, targets="0.weight").names


def test_noise_of_an_adapter_that_was_switched_off_is_that_of_the_base_weight():
    model, x = two_adapters(), torch.eye(4, dtype=torch.float64)
    flat = perturbation(model, targets="0.weight")
    switch(model, "b")
    W = model[0].weight.detach()
    std = SIGMA * W.norm(dim=1, keepdim=True) / 2
    g = torch.Generator().manual_seed(mix_seed(0, 0, "0.weight"))
    noise = std * torch.randn(W.shape, generator=g, dtype=W.dtype)
    with flat.perturbed():
        got = model[0](x)
    torch.testing.assert_close(got, x @ (W + noise).mT + model[0].bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(4, 3), (5, 4)),
        (nn.LSTM(4, 3, num_layers=2, batch_first=True), (2, 5, 4)),
        (nn.GRUCell(4, 3), (5, 4)),
        (nn.Conv2d(2, 3, 2), (1, 2, 4, 4)),
    ],
)
def test_noise_is_that_of_the_formula(layer, inputs):
    model = adapted(layer)
    x = torch.randn(inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = functional_call(plain(model), noisy_weights(model), (x,))
    with perturbation(model).perturbed():
        got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_noise_of_attention_is_that_of_the_formula():
    model = adapted(nn.MultiheadAttention(4, 2, batch_first=True), "in_proj_weight")
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = functional_call(plain(model), noisy_weights(model), (x, x, x))[0]
    with perturbation(model).perturbed():
        got = model(x, x, x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(got, model(x, x, x)[0], rtol=1e-2)


def test_filters_of_a_transposed_linear_layer_are_its_outputs():
    model = adapted(Conv1D(3, 4))
    x = torch.eye(4, dtype=torch.float64)
    expected = functional_call(plain(model), noisy_weights(model, axis=1), (x,))
    with perturbation(model).perturbed():
        got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_recurrent_layers_are_as_before_after_the_block():
    model = adapted(nn.LSTM(4, 3))
    x = torch.ones(2, 1, 4, dtype=torch.float64)
    before = model(x)[0]
    with perturbation(model).perturbed():
        model(x)
    assert torch.equal(before, model(x)[0])


def test_each_matrix_of_a_stack_has_its_own_filters():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    ops = [lo.LowRankOperator.from_dense(W[k].roll(1, 0), 1) for k in range(2)]
    merged = W + torch.stack([op.to_dense() for op in ops])
    expected = merged.norm(dim=-1, keepdim=True) / 2
    torch.testing.assert_close(filter_scale(nn.Module(), W, ops), expected, rtol=1e-12, atol=0)


def test_filters_of_a_transposed_convolution_are_those_of_the_merged_weight():
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2).double()
    W = conv.weight.detach()
    op = lo.LowRankOperator.from_dense(W.flatten(1).roll(1, 0), 2)
    grouped = (W + op.to_dense().view(W.shape)).unflatten(0, (2, 2))
    expected = grouped.square().sum((1, 3, 4), keepdim=True).div(18).sqrt().expand_as(grouped)
    got = filter_scale(conv, W, op).expand_as(W)
    torch.testing.assert_close(got, expected.flatten(0, 1), rtol=1e-12, atol=0)
