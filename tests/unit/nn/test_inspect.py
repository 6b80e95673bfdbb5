"""Adapter files are described without their model, PEFT's LoRA included."""

import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.cli import main
from lowrank_opt.errors import DataError
from lowrank_opt.nn import adapt, adapter_report, inspect_adapter, save_adapter


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4), nn.LSTM(4, 3))
    model = adapt(model, lambda shape: lo.NBLoRA(shape, 2, radius=0.5), targets=".*")
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model


def _peft(folder, config, tensors):
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_inspect_agrees_with_the_report_of_the_model(trained, tmp_path):
    save_adapter(trained, tmp_path / "a")
    expected = {(s.name, s.bound, s.spectral, s.holds) for s in adapter_report(trained)}
    assert expected == {
        (s.name, s.bound, s.spectral, s.holds) for s in inspect_adapter(tmp_path / "a")
    }


def test_inspect_command_prints_one_line_each(trained, tmp_path, capsys):
    save_adapter(trained, tmp_path / "a")
    assert 0 == main(["inspect", str(tmp_path / "a")])
    assert 1 + len(adapter_report(trained)) == len(capsys.readouterr().out.splitlines())


def test_inspect_command_prints_json(trained, tmp_path, capsys):
    save_adapter(trained, tmp_path / "a")
    assert 0 == main(["inspect", str(tmp_path / "a"), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [(s.name, list(s.shape), s.spectral, s.holds) for s in adapter_report(trained)]
    assert expected == [(x["name"], x["shape"], x["spectral"], x["holds"]) for x in lines]
    # The base weights are not in the file: no drift, and no NaN in JSON.
    assert {None} == {x["drift"] for x in lines}


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(2)),
        ({"lora_alpha": 6, "alpha_pattern": {"q_proj": 10}}, 5.0),
    ],
    ids=["alpha", "rslora", "pattern"],
)
def test_inspect_peft_checkpoint(options, scaling, tmp_path):
    A, B = torch.randn(2, 5), torch.randn(7, 2)
    key = "base_model.model.h.0.q_proj"
    tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    folder = _peft(tmp_path, {"peft_type": "LORA", "r": 2, **options}, tensors)
    (site,) = inspect_adapter(folder)
    dense = scaling * B.double() @ A.double()
    assert ("h.0.q_proj", (7, 5), 2) == (site.name, site.shape, site.rank)
    assert float(torch.linalg.matrix_norm(dense, 2)) == pytest.approx(site.spectral, rel=1e-12)


def test_inspect_peft_embedding(tmp_path):
    A, B = torch.randn(2, 9), torch.randn(5, 2)
    tensors = {"base_model.model.e.lora_embedding_A": A, "base_model.model.e.lora_embedding_B": B}
    folder = _peft(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    (site,) = inspect_adapter(folder)
    assert ("e", (9, 5)) == (site.name, site.shape)
    assert float((B @ A).double().norm()) == pytest.approx(site.frobenius, rel=1e-6)


def test_inspect_peft_adalora_and_delora(tmp_path):
    A, B, E, w = torch.randn(2, 5), torch.randn(7, 2), torch.randn(2, 1), torch.rand(5) + 1
    key = "base_model.model.q"
    tensors = {f"{key}.lora_A": A, f"{key}.lora_B": B, f"{key}.lora_E": E}
    config = {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 6, "bias": "all"}
    (tmp_path / "a").mkdir()
    (site,) = inspect_adapter(_peft(tmp_path / "a", config, tensors))
    dense = 6 / (3 + 1e-5) * B.double() @ (E * A).double()
    assert ("PEFT AdaLoRA", 2) == (site.kind, site.rank)
    assert site.holds is None, "no set is declared, so nothing can be certified"
    assert float(dense.norm()) == pytest.approx(site.frobenius, rel=1e-6)
    tensors = {f"{key}.delora_{name}": x for name, x in (("A", A), ("B", B), ("w_norm", w))}
    tensors[f"{key}.delora_lambda"] = torch.tensor([-3.0])
    (tmp_path / "d").mkdir()
    (site,) = inspect_adapter(_peft(tmp_path / "d", {"peft_type": "DELORA"}, tensors))
    dense = 1.5 * (B / B.norm(dim=0)) @ (A / A.norm(dim=1, keepdim=True)) * w
    assert ("PEFT DeLoRA", 7 * 2 + 2 * 5 + 1) == (site.kind, site.trainable)
    assert float(dense.norm()) == pytest.approx(site.frobenius, rel=1e-5)


def test_inspect_refuses_other_peft_methods(tmp_path):
    folder = _peft(tmp_path, {"peft_type": "IA3"}, {"x": torch.zeros(1)})
    with pytest.raises(DataError, match=r"DELORA can be read; got 'IA3'"):
        inspect_adapter(folder)


def test_inspect_refuses_half_a_pair(tmp_path):
    tensors = {"base_model.model.q.lora_A.weight": torch.zeros(2, 5)}
    folder = _peft(tmp_path, {"peft_type": "LORA"}, tensors)
    with pytest.raises(DataError, match=r"A and B for each weight"):
        inspect_adapter(folder)


@pytest.mark.parametrize("damage", ["missing", "config", "tensors"])
def test_inspect_command_reports_damage(damage, tmp_path, capsys):
    folder = tmp_path / "peft"
    if damage != "missing":
        folder.mkdir()
        _peft(folder, {"peft_type": "LORA"}, {"x": torch.zeros(1)})
        name = {"config": "adapter_config.json", "tensors": "adapter_model.safetensors"}[damage]
        (folder / name).write_bytes(b"{broken")
    assert 2 == main(["inspect", str(folder)])
    assert capsys.readouterr().err.startswith("error: ")
