"""A vision transformer, trained here on digits, adapted to turned digits under a norm bound."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lowrank_opt as lo
from experiments.training_vit import TinyViT
from lowrank_opt.nn import adapt, adapter_report, disabled, merge, unmerge


def _train(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, lr: float) -> None:
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(dim=1) == labels).double().mean())


@pytest.fixture(scope="module")
def trained() -> tuple[TinyViT, Tensor, Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = TinyViT()
    _train(model, images, labels, steps=100, lr=3e-3)
    return model.eval(), images, labels


def test_vit_learns_turned_digits_within_its_bound(trained):
    base, images, labels = trained
    turned = images.rot90(1, dims=(2, 3))
    before = copy.deepcopy(base.state_dict())
    model = adapt(
        copy.deepcopy(base),
        lambda shape: lo.NBLoRA(shape, min(4, *shape), radius=1.0),
        targets=".*",
        exclude="position",
    )
    start = _accuracy(model, turned, labels)
    _train(model, turned, labels, steps=100, lr=1e-2)
    assert all(site.holds for site in adapter_report(model))
    assert _accuracy(model, turned, labels) > start + 0.2
    with disabled(model):
        assert _accuracy(base, images, labels) == _accuracy(model, images, labels)
    adapted = model(turned)
    merge(model)
    torch.testing.assert_close(model(turned), adapted, rtol=1e-4, atol=1e-4)
    unmerge(model)
    after = dict(model.named_parameters())
    kept = [k for k, x in before.items() if any(torch.equal(x, y) for y in after.values())]
    assert list(before) == kept
