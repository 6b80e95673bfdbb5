"""PEFT checkpoints, read and written by the rules of its format; tests/peers runs PEFT itself."""

import json
import math
import re
from functools import partial

import pytest
import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, NotInSetError, ShapeError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    DecomposedModule,
    adapt,
    export_peft,
    import_peft,
    merge,
    peft_residuals,
)
from tests.oracles import normal

PREFIX = "base_model.model."
INDICES = torch.arange(14).reshape(2, 7) % 9


class Small(nn.Module):
    """One layer of each kind that PEFT adapts; two names of which one ends like the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        self.block = nn.ModuleDict({"fc": nn.Linear(5, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.table(indices).mT).mT
        return self.head(torch.tanh(self.block["fc"](torch.tanh(self.fc(x)))))


LAYERS = {"table": (9, 4), "conv": (6, 12), "fc": (6, 5)[::-1], "block.fc": (4, 5)}


def small() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


def checkpoint(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"{PREFIX}{key}": x.contiguous() for key, x in tensors.items()}
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    return folder


def lora(names, rank=2):
    """Return the tensors of LoRA for some layers, and B A of each in the shape of its weight."""
    tensors, products = {}, {}
    for seed, name in enumerate(names):
        m, n = LAYERS[name]
        B, A = normal(m, rank, seed=seed), normal(rank, n, seed=seed + 50)
        products[name] = B @ A
        if name == "table":
            tensors |= {f"{name}.lora_embedding_A": B.mT, f"{name}.lora_embedding_B": A.mT}
        elif name == "conv":
            tensors[f"{name}.lora_A.weight"] = A.reshape(rank, 4, 3)
            tensors[f"{name}.lora_B.weight"] = B.reshape(m, rank, 1)
        else:
            tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    return tensors, products


def with_weights(updates):
    """Return the model with other weights: the oracle."""
    model = small()
    for name, update in updates.items():
        weight = model.get_submodule(name).weight
        weight.data += update.reshape(weight.shape)
    return model


@pytest.mark.parametrize(
    ("config", "scalings"),
    [
        ({"r": 2, "lora_alpha": 6}, [3.0] * 4),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, [6 / math.sqrt(2)] * 4),
        ({"lora_alpha": 6, "alpha_pattern": {"block.fc": 1, "fc": 4}}, [3.0, 3.0, 2.0, 0.5]),
        ({"lora_alpha": -2}, [-1.0] * 4),
    ],
    ids=["alpha", "rslora", "patterns", "negative"],
)
def test_import_of_lora_is_dense_addition(config, scalings, tmp_path):
    tensors, products = lora(LAYERS)
    checkpoint(tmp_path, {"peft_type": "LORA", **config}, tensors)
    model = import_peft(small(), tmp_path)
    updates = {name: s * products[name] for name, s in zip(LAYERS, scalings, strict=True)}
    torch.testing.assert_close(with_weights(updates)(INDICES), model(INDICES))
    merge(model)
    torch.testing.assert_close(with_weights(updates)(INDICES), model(INDICES))


def test_import_of_more_terms_than_a_rank_can_have(tmp_path):
    tensors, products = lora(["fc"], rank=9)
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 9}, tensors)
    torch.testing.assert_close(
        with_weights(products)(INDICES), import_peft(small(), tmp_path)(INDICES)
    )


def test_import_of_adalora(tmp_path):
    A, E, B = normal(3, 6), normal(3, 1, seed=1), normal(5, 3, seed=2)
    config = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8, "target_r": 2}
    config["rank_pattern"] = {"fc.lora_E": [True, False, True, True]}
    gone = {"block.fc.lora_A": normal(0, 5), "block.fc.lora_B": normal(4, 0)}
    tensors = {
        "fc.lora_A": A,
        "fc.lora_E": E,
        "fc.lora_B": B,
        **gone,
        "block.fc.lora_E": normal(0, 1),
    }
    model = import_peft(small(), checkpoint(tmp_path, config, tensors))
    update = 8 / (4 + 1e-5) * B @ (E * A)
    torch.testing.assert_close(with_weights({"fc": update})(INDICES), model(INDICES))
    assert isinstance(model.fc.adapter("default").parts[0][0], lo.AdaLoRA)


@pytest.mark.parametrize("strength", [3.0, -3.0, 0.0])
@pytest.mark.parametrize("norms", [[1.0, 2, 3, 4, 5, 6], [1.0, 0, 3, 4, 5, 6]])
def test_import_of_delora(strength, norms, tmp_path):
    A, B, w = normal(2, 6), normal(5, 2, seed=1), torch.tensor(norms, dtype=torch.float64)
    B[:, 1] *= 1e-6
    lengths = A.norm(dim=1) * B.norm(dim=0).clamp_min(1e-4)
    update = strength / 2 * (B / lengths) @ A * w
    tensors = {"fc.delora_A": A, "fc.delora_B": B, "fc.delora_w_norm": w}
    tensors["fc.delora_lambda"] = torch.tensor([strength], dtype=torch.float64)
    model = import_peft(small(), checkpoint(tmp_path, {"peft_type": "DELORA", "r": 2}, tensors))
    torch.testing.assert_close(with_weights({"fc": update})(INDICES), model(INDICES))


def test_import_and_export_of_dora(tmp_path):
    tensors, products = lora(["conv", "fc"])
    tensors["conv.lora_magnitude_vector"] = normal(1, 6, 1, seed=7)
    tensors["fc.lora_magnitude_vector"] = normal(5, seed=8)
    config = {"peft_type": "LORA", "lora_alpha": 4, "use_dora": True}
    model, oracle = import_peft(small(), checkpoint(tmp_path / "a", config, tensors)), small()
    for name, update in products.items():
        V = oracle.get_submodule(name).weight
        rows = (V.data + 2 * update.reshape(V.shape)).flatten(1)
        g = tensors[f"{name}.lora_magnitude_vector"].reshape(-1, 1)
        V.data = (g * rows / rows.norm(dim=1, keepdim=True)).reshape(V.shape)
        torch.testing.assert_close(V.data, model.get_submodule(name).weight)
    torch.testing.assert_close(oracle(INDICES), model(INDICES))
    export_peft(model, tmp_path / "b")
    back = safetensors.torch.load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {f"{PREFIX}{key}" for key in tensors} == set(back)
    assert all(torch.equal(x, back[f"{PREFIX}{key}"]) for key, x in tensors.items())


def test_decomposed_convolution_starts_at_the_base_layer():
    base, x = nn.Conv2d(3, 4, 2), torch.randn(2, 3, 5, 5)
    layer = DecomposedModule(base, lo.Factored((4, 12), 2))
    assert torch.equal(base(x), layer(x))
    with pytest.raises(TargetError, match=r"rescaled in linear layers and convolutions; got Emb"):
        DecomposedModule(nn.Embedding(3, 2), lo.Factored((3, 2), 1))


MAKES = {
    "Factored": lambda s: lo.Factored(s, 2, scaling=3.0),
    "ranks and scalings": lambda s: lo.Factored(s, 1 + s[0] % 3, scaling=1.0 + s[0]),
    "NBLoRA": lambda s: lo.NBLoRA(s, 2, radius=0.5),
    "NBLoRA p=1": lambda s: lo.NBLoRA(s, 3, radius=0.5, p=1),
    "SpectralLoRA": lambda s: lo.SpectralLoRA(s, 2, radius=0.5),
    "DeLoRA": lambda s: lo.DeLoRA(s, 3, radius=2.0, column_norms=torch.ones(s[1]) / 2),
    "AdaLoRA": lambda s: lo.AdaLoRA(s, 3, scaling=2.0),
    "VeRA": lambda s: lo.VeRA(s, 3),
    "NestedSVD": lambda s: lo.NestedSVD(torch.randn(*s), lo.NBLoRA((3, 3), 2, radius=0.5)),
    "Offset": lambda s: lo.Offset(lo.HomogeneousBall(s, 1, radius=0.3)),
}


def adapted(make, **options):
    options = {"targets": "table|conv|fc", "exclude": "head", **options}
    model = adapt(small(), make, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def as_peft_reads(folder):
    """Return the updates in a folder, by PEFT's rules, written down once more."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name in LAYERS:
        alpha, rank = (
            next((v for k, v in config[p].items() if _fits(k, name)), config[default])
            for p, default in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r"))
        )
        if name == "table":
            A, B = (tensors[f"{PREFIX}{name}.lora_embedding_{x}"].double() for x in "AB")
            update = (B @ A).mT
        else:
            A, B = (tensors[f"{PREFIX}{name}.lora_{x}.weight"].double() for x in "AB")
            update = B.flatten(1) @ A.flatten(1)
        assert rank == A.shape[0]
        updates[name] = alpha / rank * update
    return config, updates


def _fits(pattern, name):
    return re.match(rf"(.*\.)?({pattern})$", name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", MAKES)
def test_exported_update_is_the_models_and_keeps_its_bound(kind, dtype, tmp_path):
    model = adapted(MAKES[kind])
    sites = export_peft(model, tmp_path, dtype=dtype)
    _, updates = as_peft_reads(tmp_path)
    for site in sites:
        member = model.get_submodule(site.name).adapter("default").parts[0][0]
        W, exact = updates[site.name], member().to_dense()
        assert (W - exact).norm() <= 64 * torch.finfo(dtype).eps * exact.norm()
        assert torch.linalg.matrix_norm(W, 2) <= site.spectral_bound
        view = member.feasible_set.as_spectral(lo.LowRankOperator.from_dense(W))
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
    assert 3.0 == again.fc.adapter("default").parts[0][0].scaling


@pytest.mark.parametrize("kind", ["NBLoRA", "DeLoRA", "AdaLoRA", "Factored"])
def test_untrained_update_is_exported_as_a_start(kind, tmp_path):
    export_peft(adapt(small(), MAKES[kind], targets="fc"), tmp_path)
    model = import_peft(small(), tmp_path)
    assert torch.equal(small().requires_grad_(False)(INDICES), model(INDICES))
    model(INDICES).square().sum().backward()
    assert any(bool(p.grad.any()) for p in model.fc.adapters.parameters())


def test_trained_modules_travel(tmp_path):
    model = adapted(MAKES["NBLoRA"], modules_to_train=["head"])
    export_peft(model, tmp_path, task_type="CAUSAL_LM")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (["head"], "CAUSAL_LM") == (config["modules_to_save"], config["task_type"])
    again = import_peft(small(), tmp_path)
    assert torch.equal(model.head.weight, again.head.weight)
    assert again.head.bias.requires_grad
    torch.testing.assert_close(model(INDICES), again(INDICES))


@pytest.mark.parametrize("name", ["second", "default"])
def test_import_beside_another_adapter(name, tmp_path):
    tensors, products = lora(["fc"])
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    model = adapted(MAKES["NBLoRA"])
    if name == "default":
        with pytest.raises(AdapterStateError, match="name must be new"):
            import_peft(model, tmp_path, name=name)
        return
    import_peft(model, tmp_path, name=name)
    torch.testing.assert_close(with_weights(products)(INDICES), model(INDICES))
    with pytest.raises(AdapterStateError, match=r"several adapters; the model has \['default'"):
        export_peft(model, tmp_path)
    export_peft(model, tmp_path / "again", name=name)
    (site,) = peft_residuals(model, tmp_path / "again", name=name)
    assert site.relative < 1e-14


def test_import_into_a_ball_needs_leave_to_project(tmp_path):
    tensors, products = lora(["fc"])
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    ball = partial(lo.NBLoRA, rank=2, radius=1.0)
    before = small()
    with pytest.raises(
        NotInSetError, match=r"fc: the target must be in SchattenBall.*project=True"
    ):
        import_peft(before, tmp_path, make=ball)
    assert isinstance(before.fc, nn.Linear)
    model = import_peft(before, tmp_path, make=ball, project=True)
    U, sigma, Vh = torch.linalg.svd(products["fc"])
    nearest = U[:, :2] @ torch.diag(sigma[:2].clamp(max=1)) @ Vh[:2]
    torch.testing.assert_close(nearest, model.fc.adapter("default").parts[0][0]().to_dense())
    (left,) = peft_residuals(model, tmp_path)
    assert float((products["fc"] - nearest).norm()) == pytest.approx(left.residual, rel=1e-9)
    assert float(products["fc"].norm()) == pytest.approx(left.norm, rel=1e-12)


REFUSED = [
    ({"bias": "all"}, "without biases; got bias='all'"),
    ({"init_lora_weights": "pissa"}, "unchanged base weights; init_lora_weights='pissa'"),
    ({"lora_bias": True}, "lora_bias=True: its update of the bias"),
    ({"trainable_token_indices": [1]}, "rows of an embedding"),
    ({"layer_replication": [[0, 1]]}, "it changes the model's layers"),
    ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow=1: its meaning is not known"),
    ({"peft_type": "IA3"}, "got 'IA3'"),
    ({"modules_to_save": ["head"]}, r"got \['head.bias', 'head.weight'\]"),
    ({"lora_alpha": "many"}, "finite numbers; got 'many'"),
    ({"modules_to_save": "head"}, "must be a list of names"),
    ({"use_dora": True}, r"A and B and magnitude for each weight; fc has \['A', 'B'\]"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[next(iter(c)) for c, _ in REFUSED])
def test_import_refuses_by_name(config, message, tmp_path):
    tensors, _ = lora(["fc"])
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2, **config}, tensors)
    model = small()
    with pytest.raises(DataError, match=message):
        import_peft(model, tmp_path)
    assert torch.equal(small()(INDICES), model(INDICES))


def test_fields_without_effect_are_taken(tmp_path):
    tensors, products = lora(["fc"])
    config = {"peft_type": "LORA", "lora_alpha": 2, "lora_dropout": 0.1, "layers_to_transform": [3]}
    config |= {
        "exclude_modules": ["head"],
        "loftq_config": {},
        "corda_config": None,
        "revision": "x",
    }
    model = import_peft(small(), checkpoint(tmp_path, config, tensors))
    torch.testing.assert_close(with_weights(products)(INDICES), model(INDICES))


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"fc.lora_A.weight": normal(2, 6)}, DataError, r"A and B for each weight; fc has \['A'\]"),
        ({}, DataError, "it adapts nothing"),
        ({"other.lora_A.weight": normal(2, 6), "other.lora_B.weight": normal(5, 2)},
         DataError, r"it adapts \['other'\], and adaptable are"),
        ({"fc.lora_A.weight": normal(2, 7), "fc.lora_B.weight": normal(5, 2)},
         ShapeError, r"weight's shape \(5, 6\); got \(5, 7\)"),
        ({"fc.lora_A.weight": normal(3, 6), "fc.lora_B.weight": normal(5, 2)},
         DataError, "damaged: fc has A of shape"),
        ({"fc.lora_A.weight": normal(2, 6) / 0, "fc.lora_B.weight": normal(5, 2)},
         DataError, "NaN or infinite"),
        ({"table.lora_A.weight": normal(2, 4), "table.lora_B.weight": normal(9, 2)},
         TargetError, "factors of no embedding"),
        ({"fc.lora_A.weight": normal(2, 6), "fc.lora_B.weight": normal(5, 2), "fc.bias": normal(5)},
         DataError, r"must belong to the adapter.*got \['fc.bias'\]"),
        ({"fc.lora_A.weight": normal(2, 6), "fc.lora_B.weight": normal(5, 2),
          "fc.base_layer.weight": normal(5, 6)}, DataError, "brings another fc.weight"),
    ],
    ids=["half", "nothing", "missing", "shape", "ranks", "nan", "embedding", "strange", "base"],
)  # fmt: skip
def test_import_refuses_tensors(tensors, error, message, tmp_path):
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    with pytest.raises(error, match=message):
        import_peft(small(), tmp_path)


def test_copies_of_the_base_weight_are_taken(tmp_path):
    tensors, products = lora(["table"])
    tensors["table.base_layer.weight"] = small().table.weight.detach()
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    model = import_peft(small(), tmp_path)
    torch.testing.assert_close(with_weights(products)(INDICES), model(INDICES))


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(DataError, match=r"never unpickled; .*save_pretrained"):
        import_peft(small(), tmp_path)


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
    with pytest.raises(TargetError, match="skip must match an adapted layer; got 'nothing'"):
        export_peft(model, tmp_path / "y", skip="nothing")


def test_export_refuses_a_model_that_is_one_layer(tmp_path):
    model = adapt(nn.Linear(4, 4), MAKES["NBLoRA"], targets=".*")
    with pytest.raises(TargetError, match="layers inside a model"):
        export_peft(model, tmp_path)


def test_export_refuses_what_is_half_trained(tmp_path):
    model = adapted(MAKES["NBLoRA"])
    model.head.bias.requires_grad_(True)
    with pytest.raises(TargetError, match=r"saves modules whole.*'head' with trained \['bias'\]"):
        export_peft(model, tmp_path)


@pytest.mark.parametrize("value", [math.nan, 1e-30, 1e6])
def test_export_refuses_numbers_that_are_lost(value, tmp_path):
    model = adapt(small(), MAKES["Factored"], targets="conv")
    nn.init.constant_(model.conv.adapter("default").parts[0][0].left, value)
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
