"""The counts of the cost experiment, beside numbers known in closed form."""

import json

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from experiments import adapter_cost, adapter_network, adapter_token
from experiments.adapter_cost import dense_passes, evaluations, flops, kept_bytes
from experiments.adapter_layers import LORA, Layer, layers
from lowrank_opt.nn import adapt

RATIOS = ("against_bare", "against_peer")
SHAPE, RANK, TOKENS = (40, 30), 2, 16
M, N = SHAPE
X = torch.randn(TOKENS, N, requires_grad=True)
GRADIENT = torch.randn(TOKENS, M)


def layer(name):
    return next(x for x in layers(SHAPE, RANK, [name]) if x.name == name)


def test_operations_are_those_of_the_formulas():
    bare, lora = layer("bare").module, layer("Factored").module
    # Forward, and the gradient of the input; the weight is frozen.
    assert 2 * 2 * TOKENS * M * N == flops(bare, X, GRADIENT)
    # Each of the two thin products once forward, twice backward.
    assert 3 * 2 * TOKENS * RANK * (M + N) == flops(lora, X, GRADIENT) - flops(bare, X, GRADIENT)


def test_what_is_kept_for_lora_is_the_thin_product():
    assert 0 == kept_bytes(layer("bare").module, X)
    # The thin product, before and after its scale, and the scale itself, in float32.
    kept = kept_bytes(layer("Factored").module, X)
    assert TOKENS * RANK * 4 <= kept <= 2 * TOKENS * RANK * 4 + RANK * 4


def test_trained_and_stored_numbers_leave_out_the_base_weight():
    lora, vera = layer("Factored"), layer("VeRA")
    assert (RANK * (M + N), 4 * RANK * (M + N)) == (lora.trained(), lora.stored_bytes())
    assert (M + RANK, 4 * (M + RANK + RANK * (M + N))) == (vera.trained(), vera.stored_bytes())


@pytest.mark.parametrize(
    ("name", "passes"),
    [("Factored", "no"), ("NBLoRA(radius)", "no"), ("WeightDecomposed(inner, weight)", "forward")],
)
def test_dense_allocations_are_found(name, passes):
    assert passes == dense_passes(layer(name).module, SHAPE)


def test_operations_and_memory_of_a_network_are_counted():
    model = nn.Sequential(nn.Linear(N, M), nn.ReLU()).requires_grad_(False)
    operations, kept = adapter_network.counts(model, X, GRADIENT)
    # Forward: transpose, addmm, relu; backward: its gradient, mm and what transposes.
    assert 5 <= operations <= 9
    # The result of the linear layer is freed, that of the rectifier is kept.
    assert TOKENS * M * 4 == kept


class Twice(lo.Parameterization):
    """Evaluates its inner map twice."""

    def __init__(self, inner):
        super().__init__(inner.shape, inner.rank)
        self.inner = inner

    def factors(self):
        self.inner()
        return self.inner()


def test_repeated_evaluations_are_found():
    inner = lo.Factored(SHAPE, RANK)
    module = adapt(layer("bare").module, lambda _: Twice(inner), targets=".*")
    assert 2 == evaluations(Layer("twice", module, [inner], lambda: module), X)
    assert 1 == evaluations(layer("NBLoRA(radius)"), X)


class Broken(nn.Linear):
    """Cannot be compiled as a whole."""

    def forward(self, x):
        y = super().forward(x)
        return y + 1 if float(y.detach().sum()) > 0 else y


def test_graphs_are_counted():
    assert 1 == adapter_token.graphs(layer("WeightDecomposed(inner, weight)").module, SHAPE)
    assert 2 == adapter_token.graphs(Broken(N, M), SHAPE)


def test_compiled_layers_are_measured(monkeypatch):
    monkeypatch.setattr(adapter_token, "COMPILED", ("DeLoRA(radius)",))
    monkeypatch.setattr(adapter_token, "_compiled", lambda module: module)
    found = adapter_token.compiled(SHAPE, RANK, turns=2, calls=3)
    assert {"bare", "DeLoRA(radius)", LORA} == {x.name for x in found}
    assert all(1 == x.graphs for x in found)
    assert {2} == {len(y) for x in found for y in (x.step, x.step_gain, x.token)}
    rows = [adapter_token.compiled_row(x) for x in found]
    assert {len(adapter_token.COMPILED_HEADER)} == {len(row) for row in rows}


def test_quick_run_writes_table_record_and_figure(tmp_path, capsys):
    small = ["--profile", "smoke", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert 0 == adapter_cost.main([*small, "--methods", "NBLoRA(radius)", "VeRA"])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "adapter-cost.json").read_text("utf-8"))
    names = [cost["name"] for cost in record["costs"]]
    assert ["bare", "Factored", "NBLoRA(radius)", "VeRA"] == [names[0], *sorted(names[1:])]
    assert all(1 == cost["evaluations"] for cost in record["costs"][1:])
    assert (tmp_path / "adapter-cost.png").stat().st_size > 0
    tokens = json.loads((tmp_path / "adapter-token.json").read_text("utf-8"))
    assert names == [token["name"] for token in tokens["tokens"]]
    # One ratio a turn; of the layer that others are measured by, to itself.
    assert {2} == {len(token[key]) for token in tokens["tokens"] for key in RATIOS}
    assert [] == tokens["compiled"]
    network = json.loads((tmp_path / "adapter-network.json").read_text("utf-8"))["networks"]
    assert sorted(names) == sorted(x["name"] for x in network)
    assert "NBLoRA(radius)" in capsys.readouterr().out
