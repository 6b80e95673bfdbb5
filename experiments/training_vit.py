"""A vision transformer trained on digits, and the task it is adapted to: turned digits."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt

N = TypeVar("N", bound=nn.Module)

RANK = 4
_TRAINING, _VALIDATION = 400, 300


class TinyViT(nn.Module):
    """Patches of 2 x 2 pixels, two blocks of width 32, mean pooling: 20,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (batch, 10)."""
        tokens = self.patches(images).flatten(2).mT + self.position
        return self.head(self.blocks(tokens).mean(dim=1))


class Split(NamedTuple):
    """Images and labels."""

    images: Tensor
    labels: Tensor


class Task(NamedTuple):
    """Turned digits: what is trained on, what settings are chosen on, what is looked at once."""

    training: Split
    validation: Split
    test: Split


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 upright digits of scikit-learn, in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images).float().unsqueeze(1) / 16, torch.tensor(data.target)


@cache
def pretrained() -> TinyViT:
    """Return the network after 400 steps on all upright digits."""
    return trained_upright(TinyViT)


def trained_upright(network: Callable[[], N]) -> N:
    """Return a new network after 400 steps on all upright digits."""
    images, labels = digits()
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches(len(labels), 400, seed=0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


def turned(seed: int, *, common_test: bool = False) -> Task:
    """Return 400 training, 300 validation and 1,097 test images, turned by 90 degrees.

    With `common_test` the test images are the same for all seeds: none is ever chosen on.
    """
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if common_test:
        seen = _TRAINING + _VALIDATION
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        order[:seen] = order[:seen][torch.randperm(seen, generator=generator)]
    images, labels = images[order].rot90(1, dims=(2, 3)), labels[order]
    cuts = [_TRAINING, _VALIDATION, len(labels) - _TRAINING - _VALIDATION]
    parts = zip(images.split(cuts), labels.split(cuts), strict=True)
    return Task(*(Split(x, y) for x, y in parts))


def batches(count: int, steps: int, seed: int) -> list[Tensor]:
    """Return `steps` random batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(count, (64,), generator=generator) for _ in range(steps)]


Make = Callable[[tuple[int, int], torch.Generator], lo.Parameterization]


def adapted(make: Make | None, seed: int) -> nn.Module:
    """Return a copy of the network with an update on every matrix, or all of it trainable."""
    model = copy.deepcopy(pretrained())
    if make is None:
        return model
    build = partial(_build, make=make, generator=torch.Generator().manual_seed(seed))
    return adapt(model, build, targets=".*", exclude="position")


def _build(
    shape: tuple[int, int], *, make: Make, generator: torch.Generator
) -> lo.Parameterization:
    return make(shape, generator)


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return the mean cross entropy and the share of right answers."""
    logits = model(split.images)
    right = (logits.argmax(dim=1) == split.labels).double().mean()
    return float(nn.functional.cross_entropy(logits, split.labels)), float(right)
