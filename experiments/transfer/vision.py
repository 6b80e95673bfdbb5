"""Fashion-MNIST to KMNIST: a vision transformer that is trained here, and its two tasks.

In small, the digits of scikit-learn stand in for both, upright and turned by a quarter.
"""

import copy
from functools import cache, partial

import torch
from torch import Tensor, nn

from experiments.training_vit import digits
from experiments.transfer.images import fashion_mnist, kmnist
from experiments.transfer.runs import (
    Outcome,
    Setting,
    Split,
    Target,
    Task,
    accuracy,
    batches,
    fine_tune,
)

WIDTH, DEPTH, HEADS, PATCH, SIDE = 64, 2, 4, 7, 28
LAYERS = r".*\.(query|key|value|out|up|down)"
EPOCHS, RATE = 4, 3e-3
TRAINING, VALIDATION, HELD_OUT = 2048, 3000, 2000


class Block(nn.Module):
    """Attention and two layers, each after a normalisation; every matrix is a layer of its own."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.before_attention, self.before_layers = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens, shape (batch, tokens, width)."""
        y = self.before_attention(x)
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.before_layers(x))))


class Body(nn.Module):
    """Squares of 7 x 7 pixels, two blocks of width 64, the mean of all tokens: 70,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH**2, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape (batch, width), of images of shape (batch, 28, 28)."""
        squares = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(1, 2).flatten(2)
        return self.last(self.blocks(self.patches(squares) + self.position).mean(dim=1))


@cache
def old_task(*, small: bool) -> tuple[Split, Split, Split]:
    """Return what the network is trained on, what its skill is watched on, and its test."""
    if small:
        images, labels = digits()
        parts = [1297, 200, 300]
        split = zip(_enlarged(images).split(parts), labels.split(parts), strict=True)
        return tuple(Split(*part) for part in split)  # pyright: ignore[reportReturnType]
    images, labels = fashion_mnist("train")
    test = Split(*fashion_mnist("t10k"))
    cut = len(labels) - HELD_OUT
    return Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]), test


@cache
def pretrained(*, small: bool) -> tuple[Body, nn.Linear]:
    """Return the network and its old head, after four epochs on Fashion-MNIST."""
    images, labels = old_task(small=small)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body, head = Body(), nn.Linear(WIDTH, 10)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    order = list(batches(len(labels), EPOCHS, seed=0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(order))
    for batch in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(body(images[batch])), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return body.eval().requires_grad_(False), head.eval().requires_grad_(False)


def skill(network: nn.Module, test: bool, *, small: bool) -> float:
    """Return the accuracy on the old task with the old head, in per cent."""
    return accuracy(network, pretrained(small=small)[1], old_task(small=small)[2 if test else 1])


@cache
def new_images(*, small: bool) -> tuple[Split, Split]:
    """Return all images to train and choose on, and those of the test."""
    if small:
        images, labels = digits()
        turned = _enlarged(images.rot90(1, dims=(2, 3)))
        return Split(turned[:1400], labels[:1400]), Split(turned[1400:], labels[1400:])
    return Split(*kmnist("train")), Split(*kmnist("test"))


def target(seed: int, *, small: bool) -> Target:
    """Return training and validation images, drawn by the seed, and the test."""
    (images, labels), test = new_images(small=small)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first, count = (128, 256) if small else (TRAINING, VALIDATION)
    chosen, other = order[:first], order[first : first + count]
    return Target(Split(images[chosen], labels[chosen]), Split(images[other], labels[other]), test)


def _enlarged(images: Tensor) -> Tensor:
    return nn.functional.interpolate(images, size=(SIDE, SIDE)).squeeze(1)


def task(*, small: bool) -> Task:
    """Return the whole task, or the small one."""
    return Task(
        lambda: copy.deepcopy(pretrained(small=small)[0]),
        LAYERS,
        partial(target, small=small),
        partial(skill, small=small),
    )


def run(
    method: str, lr: float, seed: int, setting: Setting, *, small: bool, test: bool = False
) -> Outcome:
    """Fine-tune once."""
    return fine_tune(task(small=small), method, lr, seed, setting, test=test)
