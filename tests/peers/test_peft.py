"""Adapters travel to PEFT and back: it trains and we compute the same, we train and it does."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.nn import (
    adapt,
    adapted_weights,
    export_peft,
    import_peft,
    load_adapter,
    merge_and_unload,
    peft_residuals,
    save_adapter,
)
from tests.peft_cases import INDICES, MAKES, small

pytestmark = pytest.mark.filterwarnings("ignore")

# Of the largest change of an output: factors are rounded to float32 where they are written.
ROUNDING = 2e-6


def base():
    return small().float()


def outputs(model):
    """Return the outputs in float64: float32 would round them by more than the tested differences.

    An adapter changes these outputs by a hundredth of their size, so that their own rounding, which
    each processor does in another order, would be most of what is compared.
    """
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(INDICES)


def difference(x, y):
    """Return how far two outputs are, in units of what the adapter changes."""
    change = float((y - outputs(base())).abs().max())
    assert change > 1e-3
    return float((x - y).abs().max()) / change


def train(model, each_step=lambda step: None):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for step in range(10):
        optimizer.zero_grad()
        (model(INDICES) - 1).square().sum().backward()
        optimizer.step()
        each_step(step)


def loaded(folder):
    return peft.PeftModel.from_pretrained(base(), folder)


CONFIGS = {
    "lora": lambda: peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["fc", "conv", "table"], modules_to_save=["head"]
    ),
    "rslora": lambda: peft.LoraConfig(
        r=2, lora_alpha=6, use_rslora=True, target_modules="fc|conv|block.fc",
        rank_pattern={"block.fc": 3}, alpha_pattern={"^fc": 11},
    ),
    "more terms than a rank": lambda: peft.LoraConfig(r=9, target_modules=["fc"]),
    "orthogonal start": lambda: peft.LoraConfig(
        r=2, init_lora_weights="orthogonal", target_modules=["fc"], lora_dropout=0.2
    ),
    "dora": lambda: peft.LoraConfig(
        r=2, use_dora=True, target_modules=["fc", "conv", "table"], lora_dropout=0.1
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, target_modules=["fc"], total_step=10, tinit=1,
        tfinal=3, deltaT=1,
    ),
    "delora": lambda: peft.DeloraConfig(r=2, delora_lambda=2, target_modules=["fc"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_trains_and_we_compute_the_same(kind, tmp_path):
    theirs = peft.get_peft_model(base(), CONFIGS[kind]())
    allocate = getattr(theirs.base_model, "update_and_allocate", lambda step: None)
    train(theirs, allocate)
    theirs.save_pretrained(tmp_path / "a")
    ours = import_peft(base(), tmp_path / "a")
    assert difference(outputs(ours), outputs(loaded(tmp_path / "a"))) < ROUNDING
    export_peft(ours, tmp_path / "b")
    assert difference(outputs(loaded(tmp_path / "b")), outputs(ours)) < ROUNDING


@pytest.mark.parametrize("kind", MAKES)
def test_we_train_and_peft_computes_the_same(kind, tmp_path):
    ours = adapt(
        base(), MAKES[kind], targets="table|conv|fc", exclude="head", modules_to_train=["head"]
    )
    train(ours)
    sites = export_peft(ours, tmp_path)
    theirs = loaded(tmp_path)
    assert difference(outputs(theirs), outputs(ours)) < ROUNDING
    assert difference(outputs(theirs.merge_and_unload()), outputs(ours)) < ROUNDING
    assert {"table", "conv", "fc", "block.fc"} == {site.name for site in sites}


@pytest.mark.parametrize("kind", ["Factored", "NBLoRA"])
def test_we_train_dora_and_peft_computes_the_same(kind, tmp_path):
    ours = adapt(
        base(), MAKES[kind], targets="table|conv|fc", exclude="head", magnitude=True, dropout=0.25
    )
    train(ours)
    export_peft(ours, tmp_path)
    theirs = loaded(tmp_path)
    assert 0.25 == theirs.peft_config["default"].lora_dropout
    assert difference(outputs(theirs), outputs(ours)) < ROUNDING
    assert difference(outputs(theirs.merge_and_unload()), outputs(ours)) < ROUNDING


def test_an_adapter_of_peft_is_brought_into_a_ball(tmp_path):
    theirs = peft.get_peft_model(base(), CONFIGS["lora"]())
    train(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = import_peft(
        base(), tmp_path / "theirs", make=lambda s: lo.NBLoRA(s, 2, radius=0.05), project=True
    )
    left = peft_residuals(ours, tmp_path / "theirs")
    assert all(0 < site.relative < 1 for site in left)
    export_peft(ours, tmp_path / "ours")
    updates = [
        module.get_delta_weight("default").flatten(1).double()
        for module in loaded(tmp_path / "ours").modules()
        if hasattr(module, "get_delta_weight")
    ]
    assert 4 == len(updates)
    # PEFT rounds the product once more when it forms it.
    assert all(torch.linalg.matrix_norm(W, 2) <= 0.05 * (1 + 1e-6) for W in updates)


def transformer(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_head=2, n_embd=16, vocab_size=20, n_positions=16
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=20, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "v_proj", "down_proj", "embed_tokens"]}
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("kind", TARGETS)
def test_transformers_travel_both_ways(kind, tmp_path):
    def logits(model):
        with torch.no_grad():
            return model(TOKENS).logits

    ours = adapt(transformer(kind), lambda s: lo.NBLoRA(s, 2, radius=2.0), targets=TARGETS[kind])
    for p in (p for p in ours.parameters() if p.requires_grad):
        nn.init.normal_(p)
    export_peft(ours, tmp_path / "a", task_type="CAUSAL_LM")
    theirs = peft.PeftModel.from_pretrained(transformer(kind), tmp_path / "a")
    change = (logits(ours) - logits(transformer(kind))).abs().max()
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5 * change
    theirs.save_pretrained(tmp_path / "b")
    back = import_peft(transformer(kind), tmp_path / "b")
    assert (logits(theirs) - logits(back)).abs().max() < 1e-5 * change
    assert (logits(theirs) - logits(merge_and_unload(back))).abs().max() < 1e-5 * change


def test_attention_of_torch_is_off_by_the_factor_that_is_refused(tmp_path):
    """The reason of the refusal: PEFT's output projection computes W + 2 dW."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attention": attention})
    x, out = torch.randn(2, 3, 8), attention.out_proj.weight.detach().clone()
    config = peft.LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
    theirs = peft.get_peft_model(model, config)
    layer = theirs.base_model.model["attention"]
    update = layer.base_layer.out_proj.get_delta_weight("default").detach()
    oracle = nn.MultiheadAttention(8, 2, batch_first=True)
    oracle.load_state_dict(
        {
            "in_proj_weight": layer.base_layer.in_proj_weight + layer.get_delta_weight("default"),
            "in_proj_bias": layer.base_layer.in_proj_bias,
            "out_proj.weight": out + 2 * update,
            "out_proj.bias": layer.base_layer.out_proj.base_layer.bias,
        }
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x, x, x)[0], oracle(x, x, x)[0])
    assert float(update.abs().max()) > 1e-3


BESIDES = {
    "bias all": {"target_modules": ["fc"], "bias": "all"},
    "bias of lora": {"target_modules": ["fc"], "bias": "lora_only"},
    "bias and DoRA": {"target_modules": ["fc", "conv"], "bias": "lora_only", "use_dora": True},
    "bias of the update": {"target_modules": ["fc", "conv"], "lora_alpha": 6, "lora_bias": True},
    "rows": {"target_modules": ["fc"], "trainable_token_indices": {"table": [1, 3]}},
}


@pytest.mark.parametrize("kind", BESIDES)
def test_what_peft_trains_besides_goes_both_ways(kind, tmp_path):
    theirs = peft.get_peft_model(base(), peft.LoraConfig(r=2, **BESIDES[kind]))
    train(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = import_peft(base(), tmp_path / "theirs")
    expected = outputs(loaded(tmp_path / "theirs"))
    assert difference(outputs(ours), expected) < ROUNDING
    if kind == "bias all":
        # Those of layers without an update would need the whole layers.
        with pytest.raises(TargetError, match="PEFT saves modules whole"):
            export_peft(ours, tmp_path / "ours")
        return
    export_peft(ours, tmp_path / "ours")
    assert difference(outputs(loaded(tmp_path / "ours")), expected) < ROUNDING


TYING = {
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "table": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "table, tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "update, tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]},
}  # fmt: skip


@pytest.mark.parametrize("kind", TYING)
def test_tied_weights_are_what_peft_makes_of_them(kind, tmp_path):
    transformers = pytest.importorskip("transformers")

    def tied():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=20, tie_word_embeddings=True,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()

    def logits(model):
        with torch.no_grad():
            return model.eval()(TOKENS).logits

    theirs = peft.get_peft_model(tied(), peft.LoraConfig(r=2, **TYING[kind]))
    torch.manual_seed(1)
    for p in (p for p in theirs.parameters() if p.requires_grad):
        nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    expected = logits(peft.PeftModel.from_pretrained(tied(), tmp_path))
    torch.testing.assert_close(expected, logits(import_peft(tied(), tmp_path)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_transformers_save_and_load_the_base_of_an_adapted_model(kind, tmp_path):
    model = adapt(transformer(kind), lambda s: lo.Factored(s, 2), targets=TARGETS[kind])
    for p in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(p)
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter")
    again = type(transformer(kind)).from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        assert torch.equal(transformer(kind)(TOKENS).logits, again(TOKENS).logits)
        load_adapter(again, tmp_path / "adapter")
        torch.testing.assert_close(model(TOKENS).logits, again(TOKENS).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_means_what_it_means_for_peft(tied):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    theirs = peft.get_peft_model(
        transformers.LlamaForCausalLM(config), peft.LoraConfig(r=2, target_modules="all-linear")
    )
    ours = adapt(
        transformers.LlamaForCausalLM(config), lambda s: lo.Factored(s, 2), targets="all-linear"
    )
    names = {found.slot.layer.name for found in adapted_weights(ours)}
    wrapped = [n for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert {name.removeprefix("base_model.model.") for name in wrapped} == names
