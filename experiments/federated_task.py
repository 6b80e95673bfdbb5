"""Digits in six disguises, one for each client, and an adapter that they train together.

All clients train side by side: their factors are the slices of one batched tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from experiments.records import Json
from lowrank_opt.merging import Aggregate, aggregate
from lowrank_opt.merging.federated.fair import FairObjective
from lowrank_opt.merging.federated.rules import FederatedMethod
from lowrank_opt.operator import LowRankOperator

SIDE, CLASSES, RANK, BATCH = 8, 10, 4, 32
WIDTHS = (SIDE * SIDE, 96, 96, CLASSES)
SHARE, PRETRAINING, VALIDATION = 150, 400, 200
# Gradients are clipped: without it, one batch in another domain can end a run.
LARGEST_GRADIENT = 1.0
DOMAINS = ("as it is", "mirrored", "transposed", "inverted", "turned", "blurred and pale")
BASE: dict[str, Json] = {
    "widths": list(WIDTHS),
    "rank": RANK,
    "batch": BATCH,
    "gradients clipped to the norm": LARGEST_GRADIENT,
    "images for each client": SHARE,
    "images for pretraining": PRETRAINING,
    "images for validation": VALIDATION,
    "domains": list(DOMAINS),
}


@dataclass(frozen=True)
class Rule:
    """What `aggregate` is called with; whether factors are aligned to the last broadcast."""

    name: str
    method: FederatedMethod
    regularization: float = 0.01
    objective: FairObjective = "frobenius"
    align: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """Data of the clients, of validation and test in all domains, and a pretrained network.

    Parameters
    ----------
    images : Tensor, shape (6, 150, 64)
        Of the clients, each in its own domain; no digit is shared.
    labels : Tensor, shape (6, 150)
    held_out : dict of str to (Tensor, Tensor)
        Images, shape (6, count, 64), the same digits in every domain, and labels.
    weights, biases : list of Tensor
        Of the layers, pretrained on other digits in the first domain.
    """

    images: Tensor
    labels: Tensor
    held_out: dict[str, tuple[Tensor, Tensor]]
    weights: list[Tensor]
    biases: list[Tensor]


def disguised(images: Tensor, domain: int) -> Tensor:
    """Return images of shape (count, 8, 8) as a domain shows them, shape (count, 64)."""
    shifted = (images + images.roll(1, dims=2)) / 2
    views = (
        images,
        images.flip(2),
        images.mT,
        1 - images,
        images.rot90(1, dims=(1, 2)),
        0.5 * shifted,
    )
    return views[domain].flatten(1)


@lru_cache(maxsize=8)
def federation(seed: int) -> Task:
    """Split the digits by a seed and pretrain the network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    count = len(DOMAINS)
    sizes = [SHARE * count, PRETRAINING, VALIDATION]
    clients, start, validation, test = order.split([*sizes, len(order) - sum(sizes)])
    shares = clients.view(count, SHARE)
    weights, biases = _pretrained(disguised(images[start], 0), labels[start], seed)
    return Task(
        torch.stack([disguised(images[shares[k]], k) for k in range(count)]),
        labels[shares],
        {
            name: (torch.stack([disguised(images[part], k) for k in range(count)]), labels[part])
            for name, part in (("validation", validation), ("test", test))
        },
        weights,
        biases,
    )


@lru_cache(maxsize=8)
def of_one_domain(seed: int, clients: int, domain: str) -> Task:
    """Return the digits of all clients in one domain, dealt to other clients."""
    six, view = federation(seed), DOMAINS.index(domain)
    upright = torch.cat([_upright(six.images[k], k) for k in range(len(DOMAINS))])
    return Task(
        disguised(upright, view).view(clients, -1, SIDE * SIDE),
        six.labels.reshape(clients, -1),
        {name: (x[view : view + 1], y) for name, (x, y) in six.held_out.items()},
        six.weights,
        six.biases,
    )


def _upright(images: Tensor, domain: int) -> Tensor:
    """Undo a disguise, as far as it can be: what was blurred stays so."""
    x = images.view(-1, SIDE, SIDE)
    back = (x, x.flip(2), x.mT, 1 - x, x.rot90(-1, dims=(1, 2)), 2 * x)
    return back[domain]


def _pretrained(x: Tensor, y: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(seed)
    layers = [nn.Linear(n, m) for n, m in pairwise(WIDTHS)]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(400):
        batch = torch.randint(len(y), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    return [a.weight.detach() for a in layers], [a.bias.detach() for a in layers]


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of each client's gradient, over all its factors."""
    return torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)


class Federation:
    """Clients and a server: factors of every layer, one slice for each client."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.count, self.share = task.labels.shape
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.weights = [w.clone() for w in task.weights]
        self.left: dict[int, Tensor] = {}
        self.right: dict[int, Tensor] = {}
        self.broadcast: dict[int, LowRankOperator] = {}
        for layer in range(len(self.weights)):
            self._fresh(layer)

    def train(self, steps: int, lr: float, *, frozen_right: bool) -> None:
        """Let every client take steps of SGD, with clipped gradients, on its own images."""
        trained = [*self.left.values(), *([] if frozen_right else self.right.values())]
        for tensor in trained:
            tensor.requires_grad_()
        clients = torch.arange(self.count).unsqueeze(1)
        for _ in range(steps):
            batch = torch.randint(
                self.share, (self.count, min(BATCH, self.share)), generator=self.generator
            )
            logits = self._logits(self.task.images[clients, batch])
            labels = self.task.labels[clients, batch]
            # A sum over clients, whose factors are their own: each gets the gradient of its mean.
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            gradients = torch.autograd.grad(self.count * loss, trained)
            rate = lr / _norms(gradients).clamp_min(LARGEST_GRADIENT) * LARGEST_GRADIENT
            with torch.no_grad():
                for tensor, gradient in zip(trained, gradients, strict=True):
                    tensor.sub_(rate.view(-1, 1, 1) * gradient)
        for tensor in trained:
            tensor.requires_grad_(False)

    def sent(self) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Return what each client sends: its factors, by layer."""
        return [
            {f"{i}": (self.left[i][k], self.right[i][k]) for i in range(len(self.weights))}
            for k in range(self.count)
        ]

    def aggregate(self, rule: Rule) -> dict[str, Aggregate]:
        """Aggregate all layers, and let the clients start from what is sent."""
        layers = range(len(self.weights))
        clients = self.sent()
        reference = {f"{i}": self.broadcast[i] for i in layers} if rule.align else None
        results = aggregate(
            clients,
            rule.method,
            reference=reference,
            regularization=rule.regularization,
            objective=rule.objective,
        )
        for i in layers:
            self._start(i, results[f"{i}"])
        return results

    def accuracy(self, part: Literal["validation", "test"]) -> float:
        """Return the accuracy of the server's model, averaged over all domains."""
        images, labels = self.task.held_out[part]
        return float((self._logits(images).argmax(-1) == labels).float().mean())

    @staticmethod
    def bias(results: dict[str, Aggregate]) -> float:
        """Return the relative bias of all layers together."""
        sizes = [float(r.ideal.schatten_norm(2)) for r in results.values()]
        errors = [r.bias * size for r, size in zip(results.values(), sizes, strict=True)]
        total = sum(size**2 for size in sizes)
        return (sum(e**2 for e in errors) / total) ** 0.5 if total > 0 else 0.0

    def _logits(self, x: Tensor) -> Tensor:
        for i, weight in enumerate(self.weights):
            # Held-out images are those of domains; after an aggregation all slices are equal.
            update = (x @ self.right[i][: len(x)]) @ self.left[i][: len(x)].mT
            y = x @ weight.mT + update + self.task.biases[i]
            x = y.relu() if i + 1 < len(self.weights) else y
        return x

    def _start(self, layer: int, result: Aggregate) -> None:
        if result.base_update is not None:
            self.weights[layer] = self.weights[layer] + result.base_update.to_dense()
        if result.broadcast is None:
            self._fresh(layer)
            return
        self.start_from(layer, result.broadcast)

    def _fresh(self, layer: int) -> None:
        """Start all clients from the same zero update, as LoRA does."""
        m, n = self.weights[layer].shape
        right = (2 * torch.rand(n, RANK, generator=self.generator) - 1) / n**0.5
        op = LowRankOperator(torch.zeros(m, RANK), torch.ones(RANK), right)
        self.start_from(layer, op)

    def start_from(self, layer: int, op: LowRankOperator) -> None:
        """Give all clients the factors of one update, whose scale is one."""
        self.broadcast[layer] = op
        self.left[layer] = op.left.expand(self.count, -1, -1).clone()
        self.right[layer] = op.right.expand(self.count, -1, -1).clone()
