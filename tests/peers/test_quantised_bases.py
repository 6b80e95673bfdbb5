"""Adapters over bases that other packages quantise: torchao and bitsandbytes, on the CPU."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.errors import TargetError
from lowrank_opt.nn import (
    adapt,
    adapted_weights,
    adapter_report,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    unmerge,
)

bitsandbytes = pytest.importorskip("bitsandbytes")
quantization = pytest.importorskip("torchao.quantization")
transformers = pytest.importorskip("transformers")

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def by_torchao(model: nn.Module, config: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, config)


def by_bitsandbytes(model: nn.Module, make: Callable[..., nn.Module]) -> None:
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and "lm_head" not in name:
            made = make(layer.in_features, layer.out_features, layer.bias is not None)
            made.load_state_dict(layer.state_dict())
            model.set_submodule(name, made.to("cpu"))


nf4 = functools.partial(bitsandbytes.nn.Linear4bit, compute_dtype=torch.float32, quant_type="nf4")
int8 = functools.partial(bitsandbytes.nn.Linear8bitLt, has_fp16_weights=False)
STORAGES: dict[str, Callable[[nn.Module], None]] = {
    "torchao int8": lambda m: by_torchao(m, quantization.Int8WeightOnlyConfig()),
    "torchao int4": lambda m: by_torchao(
        m, quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    ),
    "torchao float8": lambda m: by_torchao(m, quantization.Float8WeightOnlyConfig()),
    "bitsandbytes nf4": lambda m: by_bitsandbytes(m, nf4),
    "bitsandbytes int8": lambda m: by_bitsandbytes(m, int8),
}
# What the kernel rounds the input to, relative to its largest entry.
ROUNDING = {"bitsandbytes int8": 1 / 127}


def make_model(storage: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).requires_grad_(False)
    STORAGES[storage](model)
    # In training, for bitsandbytes packs its weights anew where a processor has a faster kernel.
    model(X)
    return model


def trained(model: nn.Module) -> nn.Module:
    make = functools.partial(lo.NBLoRA, rank=2, radius=1.0)
    adapt(
        model, lambda s: make(s, generator=torch.Generator().manual_seed(3)), targets="all-linear"
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    return model


def bytes_of(x: Tensor) -> list[bytes]:
    names = x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else ()
    parts = [getattr(x, name) for name in names]
    if parts:
        return [octets for part in parts for octets in bytes_of(part)]
    return [x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()]


def bits_of(model: nn.Module) -> dict[str, list[bytes]]:
    return {
        name: bytes_of(x.data if type(x) is not nn.Parameter else x)
        for name, x in model.named_parameters()
        if "lowrank_adapters" not in name
    }


def gap(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).norm() / expected.norm())


@pytest.mark.parametrize("storage", STORAGES)
def test_adapters_of_a_quantised_base(storage: str, tmp_path) -> None:
    base, model = make_model(storage), make_model(storage)
    bits, y0 = bits_of(base), base(X)
    y = trained(model)(X)
    assert gap(y0, y) > 0.01
    assert bits == bits_of(model)
    with disabled(model):
        assert torch.equal(y0, model(X))
    dW = [found.updates[0]().to_dense() for found in adapted_weights(model)]
    hidden = torch.tanh(base[0](X) + X @ dW[0].mT)
    tolerance = 1e-5 + ROUNDING.get(storage, 0.0)
    assert gap(base[2](hidden) + hidden @ dW[1].mT, y) <= tolerance
    assert all(site.holds and 0 < site.drift < 1 for site in adapter_report(model))

    with pytest.raises(TargetError, match="held in few bits"):
        merge(model)
    merge(model, dequantize=True)
    assert gap(y, model(X)) <= 2 * tolerance
    unmerge(model)
    assert bits == bits_of(model)
    assert torch.equal(y, model(X))
    save_adapter(model, tmp_path)
    assert torch.equal(y, load_adapter(make_model(storage), tmp_path)(X))
    assert torch.equal(y, copy.deepcopy(model)(X))
    plain = merge_and_unload(model, dequantize=True)
    assert all(type(p) is nn.Parameter for p in plain.parameters())
    assert gap(y, plain(X)) <= 2 * tolerance


@pytest.mark.parametrize("storage", ["bitsandbytes nf4", "torchao int4"])
def test_a_llama_on_four_bits_is_trained(storage: str) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    STORAGES[storage](model.model)
    ids = torch.randint(0, 64, (4, 16))
    model(input_ids=ids)
    bits = bits_of(model)
    adapt(model, functools.partial(lo.NBLoRA, rank=4, radius=2.0), targets="all-linear")
    assert 14 == len(adapted_weights(model))
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses: list[float] = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    assert bits == bits_of(model)
    assert all(site.holds for site in adapter_report(model))
    tokens = model.generate(ids[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0)
    merge(model, dequantize=True)
    again = model.generate(ids[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, again)
