"""Exported checkpoints, read back by the rules of PEFT's format; tests/peers runs PEFT itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, OptionError, TargetError
from lowrank_opt.nn import (
    adapt,
    export_peft,
    import_peft,
    peft_residuals,
)
from lowrank_opt.nn.interop.peft_residuals import PeftResidual
from tests.adapted import member
from tests.peft_cases import (
    INDICES,
    MAKES,
    adapted,
    as_peft_reads,
    checkpoint,
    small,
    with_weights,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", MAKES)
def test_exported_update_is_the_models_and_keeps_its_bound(kind, dtype, tmp_path):
    model = adapted(MAKES[kind])
    sites = export_peft(model, tmp_path, dtype=dtype)
    _, updates = as_peft_reads(tmp_path)
    for site in sites:
        part = member(model.get_submodule(site.name))
        W, exact = updates[site.name], part().to_dense()
        assert (W - exact).norm() <= 64 * torch.finfo(dtype).eps * exact.norm()
        assert torch.linalg.matrix_norm(W, 2) <= site.spectral_bound
        view = part.feasible_set.as_spectral(lo.LowRankOperator.from_dense(W))
        assert (kind != "Offset") == site.certified == (view is not None)
        assert view is None or view[1].excess(view[0]) <= 1e-13
    back = import_peft(small(), tmp_path)
    worst = max(site.relative for site in peft_residuals(model, tmp_path))
    assert worst <= 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(with_weights(updates)(INDICES), back(INDICES))


def test_names_that_end_like_others_are_told_apart(tmp_path):
    export_peft(adapted(MAKES["ranks and scalings"]), tmp_path / "all")
    config, _ = as_peft_reads(tmp_path / "all")
    assert ["block\\.fc", "table", "conv", "fc"] == list(config["rank_pattern"])
    assert "table|conv|fc|block\\.fc" == config["target_modules"]
    export_peft(adapted(MAKES["NBLoRA"], targets="conv|block.fc"), tmp_path / "some")
    config = json.loads((tmp_path / "some" / "adapter_config.json").read_text())
    assert (["conv", "block.fc"], {}, 2) == (
        config["target_modules"], config["alpha_pattern"], config["lora_alpha"]
    )  # fmt: skip


def test_plain_factors_travel_bit_for_bit(tmp_path):
    model = adapted(MAKES["Factored"])
    export_peft(model, tmp_path)
    again = import_peft(small(), tmp_path)
    assert torch.equal(model(INDICES), again(INDICES))
    assert 3.0 == member(again.fc).scaling


@pytest.mark.parametrize("kind", ["NBLoRA", "DeLoRA", "AdaLoRA", "Factored"])
def test_untrained_update_is_exported_as_a_start(kind, tmp_path):
    export_peft(adapt(small(), MAKES[kind], targets="fc"), tmp_path)
    model = import_peft(small(), tmp_path)
    assert torch.equal(small().requires_grad_(False)(INDICES), model(INDICES))
    model(INDICES).square().sum().backward()
    assert any(bool(p.grad.any()) for p in member(model.fc).parameters())


def test_trained_modules_travel(tmp_path):
    model = adapted(MAKES["NBLoRA"], modules_to_train=["head"])
    export_peft(model, tmp_path, task_type="CAUSAL_LM")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (["head"], "CAUSAL_LM") == (config["modules_to_save"], config["task_type"])
    again = import_peft(small(), tmp_path)
    assert torch.equal(model.head.weight, again.head.weight)
    assert again.head.bias.requires_grad
    torch.testing.assert_close(model(INDICES), again(INDICES))


def test_biases_of_adapted_layers_travel(tmp_path):
    A, B = torch.zeros(1, 6), torch.zeros(5, 1)
    bias = {"fc.lora_A.weight": A, "fc.lora_B.weight": B, "fc.base_layer.bias": torch.ones(5)}
    config = {"peft_type": "LORA", "lora_alpha": 2, "bias": "lora_only"}
    model = import_peft(small(), checkpoint(tmp_path / "a", config, bias))
    export_peft(model, tmp_path / "b")
    told = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert ("lora_only", None) == (told["bias"], told["modules_to_save"])
    again = import_peft(small(), tmp_path / "b")
    assert torch.equal(torch.ones(5).to(again.fc.bias), again.fc.bias)
    assert torch.equal(model(INDICES), again(INDICES))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.scaled = type("Scaled", (nn.Embedding,), {"forward": lambda s, i: 2})(5, 4)
        self.dilated = nn.Conv1d(4, 4, 2, dilation=2)
        self.grouped = nn.Conv1d(4, 4, 2, groups=2)
        self.mirrored = nn.Conv1d(4, 4, 2, padding_mode="reflect", padding=1)
        self.transposed = nn.ConvTranspose1d(4, 4, 2)
        self.recurrent = nn.GRU(4, 4)
        self.tied, self.other = nn.Linear(4, 5), nn.Linear(4, 5)
        self.other.weight = self.tied.weight
        self.fine = nn.Linear(4, 4)


OBSTACLES = {
    "attention": r"attention.in_proj_weight \(PEFT computes W \+ 2 dW.*out_proj.*never called",
    "scaled": "Scaled has a forward of its own",
    "dilated": "not dilated",
    "grouped": "every group see all channels",
    "mirrored": "pads with zeros, and the layer by 'reflect'",
    "transposed": "no ConvTranspose1d.weight",
    "recurrent": r"recurrent.weight_ih_l0 \(PEFT's LoRA has no GRU",
    "tied": r"tied.weight \(it is tied to other.weight",
}


@pytest.mark.parametrize("layer", OBSTACLES)
def test_export_refuses_before_it_writes(layer, tmp_path):
    model = adapt(Attending(), lambda s: lo.NBLoRA(s, 2, radius=1.0), targets=[layer, "fine"])
    with pytest.raises(TargetError, match=OBSTACLES[layer]):
        export_peft(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    both = ["tied", "other"]
    sites = export_peft(model, tmp_path / "x", skip=both if layer in both else rf"{layer}(\..*)?")
    assert ["fine"] == [site.name for site in sites]
    with pytest.raises(OptionError, match="skip must match an adapted layer; got 'nothing'"):
        export_peft(model, tmp_path / "y", skip="nothing")


def test_export_refuses_a_model_that_is_one_layer(tmp_path):
    model = adapt(nn.Linear(4, 4), MAKES["NBLoRA"], targets=".*")
    with pytest.raises(TargetError, match="layers inside a model"):
        export_peft(model, tmp_path)


def test_export_refuses_what_is_half_trained(tmp_path):
    model = adapted(MAKES["NBLoRA"])
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(TargetError, match=r"saves modules whole.*'head' with trained \['bias'\]"):
        export_peft(model, tmp_path)


@pytest.mark.parametrize("value", [math.nan, 1e-30, 1e6])
def test_export_refuses_numbers_that_are_lost(value, tmp_path):
    model = adapt(small(), MAKES["Factored"], targets="conv")
    nn.init.constant_(member(model.conv).left, value)
    if math.isnan(value):
        with pytest.raises(TargetError, match=r"must be finite; conv.weight has NaN"):
            export_peft(model, tmp_path)
        return
    export_peft(model, tmp_path, dtype=torch.float32)
    assert max(s.relative for s in peft_residuals(model, tmp_path)) < 1e-5
    if value < 1:
        with pytest.raises(TargetError, match=r"underflow in torch.float16; conv.weight of norm"):
            export_peft(model, tmp_path, dtype=torch.float16)


def test_interrupted_write_leaves_no_mixture(tmp_path, monkeypatch):
    model = adapted(MAKES["NBLoRA"])
    export_peft(model, tmp_path)
    kept = (tmp_path / "adapter_model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    other = adapted(MAKES["Factored"])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        export_peft(other, tmp_path)
    assert kept == (tmp_path / "adapter_model.safetensors").read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} == names
    with pytest.raises(DataError, match="written to a folder"):
        export_peft(model, tmp_path / "adapter_config.json")


def pinned(parameterization, values):
    """Return a model of one inner layer whose update has these parameters."""
    m, n = parameterization.shape
    model = adapt(nn.Sequential(nn.Linear(n, m)), lambda _: parameterization, targets="0")
    with torch.no_grad():
        for key, value in values.items():
            dict(member(model[0]).named_parameters())[key].fill_(value)
    return model


def test_product_beyond_float32_is_exported_in_its_factors(tmp_path):
    values = {"left": 1e15, "values": 1e15, "right": 1e15}
    model = pinned(lo.AdaLoRA((4, 3), 1), values)
    export_peft(model, tmp_path)
    assert peft_residuals(model, tmp_path)[0].relative < 1e-6


def test_terms_that_cancel_are_exported_as_nothing(tmp_path):
    model = pinned(lo.Offset(lo.Factored((4, 3), 1).assign(torch.ones(4, 3))), {})
    (site,) = export_peft(model, tmp_path)
    assert (2, True) == (site.rank, site.spectral_bound < 1e-14)


def test_more_terms_than_a_rank_are_brought_together(tmp_path):
    model = pinned(
        lo.Offset(lo.Factored((4, 3), 3).assign(torch.ones(4, 3), project=True)),
        {"inner.left": 2.0},
    )
    (site,) = export_peft(model, tmp_path)
    assert 3 == site.rank
    assert peft_residuals(model, tmp_path)[0].relative < 1e-6


def test_checkpoint_stays_if_a_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    export_peft(adapted(MAKES["NBLoRA"]), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    take = Path.replace

    def full(path, target):
        if Path(target).name == "adapter_model.safetensors":
            raise OSError(28, "No space left on device")
        return take(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="No space left on device"):
        export_peft(adapted(MAKES["NBLoRA"], dropout=0.5), tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("norm", "residual", "relative"), [(0, 0, 0), (2, 0, 0), (2, 1, 0.5), (0, 1, math.inf)]
)
def test_residuals_are_parts_of_the_norm(norm, residual, relative):
    assert relative == PeftResidual("fc", norm, residual).relative
