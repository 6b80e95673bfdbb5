"""PEFT checkpoints, written by the rules of the format and read; tests/peers runs PEFT itself."""

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, NotInSetError, OptionError, ShapeError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    adapt,
    disabled,
    export_peft,
    import_peft,
    merge,
    peft_residuals,
)
from tests.adapted import member
from tests.oracles import normal
from tests.peft_cases import (
    INDICES,
    LAYERS,
    MAKES,
    PREFIX,
    adapted,
    checkpoint,
    lora,
    small,
    with_weights,
)


@pytest.mark.parametrize(
    ("config", "scalings"),
    [
        ({"r": 2, "lora_alpha": 6}, [3.0] * 4),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, [6 / math.sqrt(2)] * 4),
        ({"lora_alpha": 6, "alpha_pattern": {"block.fc": 1, "fc": 4}}, [3.0, 3.0, 2.0, 0.5]),
        ({"lora_alpha": -2}, [-1.0] * 4),
        ({}, [4.0] * 4),
    ],
    ids=["alpha", "rslora", "patterns", "negative", "default"],
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
    assert isinstance(member(model.fc), lo.AdaLoRA)


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


@pytest.mark.parametrize("others", [(), ("a", "b")])
def test_import_and_export_of_dora(others, tmp_path):
    tensors, products = lora(["conv", "fc", "table"])
    tensors["conv.lora_magnitude_vector"] = normal(1, 6, 1, seed=7)
    tensors["fc.lora_magnitude_vector"] = normal(5, seed=8)
    tensors["table.lora_magnitude_vector"] = normal(4, seed=9)
    config = {"peft_type": "LORA", "lora_alpha": 4, "use_dora": True, "lora_dropout": 0.25}
    model, oracle = small(), small()
    for name in others:
        adapt(model, MAKES["NBLoRA"], targets="fc", name=name)
    import_peft(model, checkpoint(tmp_path / "a", config, tensors), name="dora")
    for name, update in products.items():
        V = oracle.get_submodule(name).weight
        rows = (V.data + 2 * update.reshape(V.shape)).flatten(1)
        g = tensors[f"{name}.lora_magnitude_vector"].flatten()
        # PEFT takes an embedding for a layer with words in and features out.
        g, axis = (g, 0) if name == "table" else (g.unsqueeze(1), 1)
        V.data = (g * rows / rows.norm(dim=axis, keepdim=True)).reshape(V.shape)
        torch.testing.assert_close(V.data, model.get_submodule(name).weight.detach().clone())
    torch.testing.assert_close(oracle(INDICES), model(INDICES))
    export_peft(model, tmp_path / "b", name="dora")
    back = safetensors.torch.load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {f"{PREFIX}{key}" for key in tensors} == set(back)
    assert all(torch.equal(x, back[f"{PREFIX}{key}"]) for key, x in tensors.items())
    written = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (True, 0.25) == (written["use_dora"], written["lora_dropout"])


def test_export_of_magnitudes_in_some_layers_is_refused(tmp_path):
    model = adapt(small(), MAKES["NBLoRA"], targets="fc|conv", magnitude=True)
    del model.conv.lowrank_adapters.part("default").magnitudes.homes["weight"]
    with pytest.raises(TargetError, match="DoRA in all layers or in none; got magnitudes in some"):
        export_peft(model, tmp_path)
    assert ["conv"] == [site.name for site in export_peft(model, tmp_path, skip="fc")]


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
    torch.testing.assert_close(nearest, member(model.fc)().to_dense())
    (left,) = peft_residuals(model, tmp_path)
    assert float((products["fc"] - nearest).norm()) == pytest.approx(left.residual, rel=1e-9)
    assert float(products["fc"].norm()) == pytest.approx(left.norm, rel=1e-12)


REFUSED = [
    ({"bias": "some"}, "bias must be one of 'none', 'all', 'lora_only'; got bias='some'"),
    ({"init_lora_weights": "pissa"}, "unchanged base weights; init_lora_weights='pissa'"),
    ({"lora_bias": True}, r"A and B and bias for each weight; fc has \['A', 'B'\]"),
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


def with_adapters():
    return adapted(MAKES["NBLoRA"], targets="fc", exclude="block.*")


DORA = {"peft_type": "LORA", "lora_alpha": 4, "use_dora": True}


def test_import_of_dora_takes_no_other_parameterization(tmp_path):
    tensors, _ = lora(["fc"])
    tensors["fc.lora_magnitude_vector"] = normal(5)
    checkpoint(tmp_path, DORA, tensors)
    with pytest.raises(TargetError, match="make= cannot take it"):
        import_peft(small(), tmp_path, make=lambda s: lo.Factored(s, 2))


def test_import_refuses_a_dropout_that_is_no_probability(tmp_path):
    tensors, _ = lora(["fc"])
    config = {"peft_type": "LORA", "lora_alpha": 4, "lora_dropout": 1.0}
    with pytest.raises(DataError, match="lora_dropout must be a probability below 1; got 1"):
        import_peft(small(), checkpoint(tmp_path, config, tensors))


def test_import_refuses_a_magnitude_of_another_length(tmp_path):
    tensors, _ = lora(["fc"])
    tensors["fc.lora_magnitude_vector"] = normal(4)
    checkpoint(tmp_path, DORA, tensors)
    with pytest.raises(ShapeError, match="magnitude of fc must have 5 numbers; got 4"):
        import_peft(small(), tmp_path)
    with pytest.raises(DataError, match="DoRA is no low-rank update"):
        peft_residuals(small(), tmp_path)


def test_import_refuses_a_weight_that_is_adapted_twice(tmp_path):
    tied = nn.Sequential(nn.Linear(6, 5), nn.Linear(6, 5))
    tied[1].weight = tied[0].weight
    tensors, _ = lora(["fc"])
    twice = {key.replace("fc", name): x.clone() for key, x in tensors.items() for name in "01"}
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, twice)
    with pytest.raises(TargetError, match=r"one update; [01].weight is [01].weight too"):
        import_peft(tied, tmp_path)


def test_import_onto_the_meta_device(tmp_path):
    tensors, products = lora(["fc"])
    tensors["fc.base_layer.weight"] = small().fc.weight.detach()
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    model = import_peft(small().to("meta"), tmp_path)
    found = member(model.fc)().to_dense()
    torch.testing.assert_close(products["fc"], found)


def test_import_checks_what_make_returns(tmp_path):
    tensors, _ = lora(["fc"])
    checkpoint(tmp_path, {"peft_type": "LORA", "lora_alpha": 2}, tensors)
    with pytest.raises(OptionError, match=r"make\(\(5, 6\)\) must return a Parameterization of"):
        import_peft(small(), tmp_path, make=lambda s: lo.Factored(s[::-1], 2))
    with pytest.raises(DataError, match="'default' has no fc"):
        peft_residuals(small(), tmp_path)


def test_import_of_biases(tmp_path):
    tensors, products = lora(["fc"])
    tensors |= {"fc.base_layer.bias": normal(5, seed=3), "head.bias": normal(2, seed=4)}
    config = {"peft_type": "LORA", "lora_alpha": 2, "bias": "all"}
    model, oracle = import_peft(small(), checkpoint(tmp_path, config, tensors)), small()
    oracle.fc.weight.data += products["fc"]
    oracle.fc.bias.data, oracle.head.bias.data = normal(5, seed=3), normal(2, seed=4)
    torch.testing.assert_close(oracle(INDICES), model(INDICES))
    with disabled(model):
        torch.testing.assert_close(small()(INDICES), model(INDICES))


def test_import_of_a_bias_of_the_update(tmp_path):
    tensors, products = lora(["fc"])
    tensors["fc.lora_B.bias"] = normal(5, seed=3)
    config = {"peft_type": "LORA", "lora_alpha": 6, "lora_bias": True}
    model, oracle = import_peft(small(), checkpoint(tmp_path, config, tensors)), small()
    oracle.fc.weight.data += 3 * products["fc"]
    oracle.fc.bias.data += 3 * normal(5, seed=3)
    torch.testing.assert_close(oracle(INDICES), model(INDICES))


@pytest.mark.parametrize("rows", [[1, 3], {"table": [1, 3]}])
def test_import_of_rows_of_an_embedding(rows, tmp_path):
    tensors, products = lora(["fc"])
    tensors["table.token_adapter.trainable_tokens_delta"] = normal(2, 4, seed=3)
    config = {"peft_type": "LORA", "lora_alpha": 2, "trainable_token_indices": rows}
    model, oracle = import_peft(small(), checkpoint(tmp_path, config, tensors)), small()
    oracle.fc.weight.data += products["fc"]
    oracle.table.weight.data[[1, 3]] = normal(2, 4, seed=3)
    torch.testing.assert_close(oracle(INDICES), model(INDICES))
    checkpoint(tmp_path, {**config, "trainable_token_indices": [1, 30]}, tensors)
    with pytest.raises(ShapeError, match=r"rows \[1, 30\] of table, \(9, 4\)"):
        import_peft(small(), tmp_path)


def tied(*, told=True):
    """A model with a tie; PEFT keeps those alone that the model tells, as transformers' do."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "embed_tokens": nn.Embedding(9, 4)}).double()
    model["lm_head"] = nn.Linear(4, 9, bias=False).double()
    model["lm_head"].weight = model["embed_tokens"].weight
    if told:
        model._tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
        model.config = SimpleNamespace(tie_word_embeddings=True)
    return model


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("tying", [True, False])
def test_import_of_a_tied_module_is_apart_unless_both_say_otherwise(tying, told, tmp_path):
    A, B, W = normal(2, 4), normal(4, 2, seed=1), normal(9, 4, seed=2)
    tensors = {"fc.lora_A.weight": A, "fc.lora_B.weight": B, "lm_head.weight": W}
    config = {"peft_type": "LORA", "lora_alpha": 2, "modules_to_save": ["lm_head"]}
    config["ensure_weight_tying"] = tying
    model = import_peft(tied(told=told), checkpoint(tmp_path / "a", config, tensors))
    assert torch.equal(W, model["lm_head"].weight)
    assert (tying and told) == torch.equal(W, model["embed_tokens"].weight)
    checkpoint(tmp_path / "both", config, {**tensors, "embed_tokens.weight": W.clone()})
    if tying and told:
        model = import_peft(tied(), tmp_path / "both")
        assert torch.equal(W, model["embed_tokens"].weight)
    else:
        with pytest.raises(DataError, match=r"got \['embed_tokens.weight'\]"):
            import_peft(tied(told=told), tmp_path / "both")


@pytest.mark.parametrize("told", [True, False])
def test_import_of_rows_of_a_tied_table(told, tmp_path):
    A, B, rows = normal(2, 4), normal(4, 2, seed=1), normal(2, 4, seed=2)
    tensors = {"fc.lora_A.weight": A, "fc.lora_B.weight": B}
    tensors["embed_tokens.token_adapter.trainable_tokens_delta"] = rows
    config = {"peft_type": "LORA", "lora_alpha": 2, "trainable_token_indices": [1, 3]}
    model = import_peft(tied(told=told), checkpoint(tmp_path, config, tensors))
    assert torch.equal(rows, model["embed_tokens"].weight[[1, 3]])
    assert told == torch.equal(rows, model["lm_head"].weight[[1, 3]])


def test_import_of_an_update_that_tied_layers_share(tmp_path):
    A, B = normal(2, 4), normal(9, 2, seed=1)
    tensors = {"lm_head.lora_A.weight": A, "lm_head.lora_B.weight": B}
    tensors |= {"embed_tokens.lora_embedding_A": B.mT, "embed_tokens.lora_embedding_B": A.mT}
    config = {"peft_type": "LORA", "lora_alpha": 2, "ensure_weight_tying": True}
    model = import_peft(tied(), checkpoint(tmp_path, config, tensors))
    expected = tied()["embed_tokens"].weight + B @ A
    torch.testing.assert_close(expected, model["embed_tokens"].weight)
    torch.testing.assert_close(expected, model["lm_head"].weight)
