"""
Many clients, one model
=======================

.. index:: ! federated

Four clients with pictures that they do not share train one adapter together. A server makes one update of theirs, in each
round; we look at what is lost on the way, keep every client inside a ball, and add noise that hides who took part.
"""

# %%
# The clients
# -----------
# Digits of 8 x 8 pixels. A network knows them as they are; each client sees them in a way of its own.

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import lowrank_opt as lo
from lowrank_opt.merging import adapter_updates, aggregate, private_merge, start_round
from lowrank_opt.nn import adapt

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]
views = {
    "mirrored": lambda x: x.flip(2),
    "transposed": lambda x: x.mT,
    "inverted": lambda x: 1 - x,
    "turned": lambda x: x.rot90(1, dims=(1, 2)),
}


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, steps: int, rate: float) -> None:
    """Train what is trainable; gradients are clipped, or one batch can end a run."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate)
    for _ in range(steps):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )


base = network()
train(base, images[:400], labels[:400], steps=400, rate=0.2)
# Client k has 150 digits of its own; the last 400 are for the test, in all four views.
shares = [slice(400 + 150 * k, 550 + 150 * k) for k in range(4)]
data = [(view(images[s]), labels[s]) for view, s in zip(views.values(), shares, strict=True)]
test = [view(images[-400:]) for view in views.values()]


def accuracy(model: nn.Module) -> float:
    """Return the share of right answers, averaged over the four views."""
    with torch.no_grad():
        right = [(model(x).argmax(1) == labels[-400:]).float().mean() for x in test]
    return float(torch.stack(right).mean())


print(f"the network alone: {accuracy(base):.3f}")

# %%
# A round
# -------
# Each client adapts the same base, trains on what it has, and sends its update; ``aggregate`` makes one result for each matrix,
# and ``start_round`` puts it where the next round starts. What a rule cannot send is its *bias*:
# :math:`\|D - \text{sent}\| / \|D\|`, with :math:`D` the mean of the clients' updates.


def start(make: Callable) -> nn.Module:
    model = network()
    model.load_state_dict(base.state_dict())
    torch.manual_seed(1)  # all clients start from the same factors
    return adapt(model, make, targets="all-linear")


def federate(method: str, make: Callable, *, rate: float, rounds: int = 12) -> tuple:
    """Return the accuracy after each round, the bias of each, and the clients' models."""
    clients, accuracies, biases = [start(make) for _ in data], [], []
    for round_ in range(rounds):
        for model, (x, y) in zip(clients, data, strict=True):
            train(model, x, y, steps=20, rate=rate)
        results = aggregate(clients, method)
        for model in clients:
            start_round(model, results, generator=torch.Generator().manual_seed(round_))
        accuracies.append(accuracy(clients[0]))
        biases.append(max(result.bias for result in results.values()))
    return accuracies, biases, clients


def lora(shape: tuple[int, int]) -> lo.Factored:
    return lo.Factored(shape, rank=4)


runs = {method: federate(method, lora, rate=0.8) for method in ("fedit", "flexlora", "flora")}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for method, (accuracies, biases, _) in runs.items():
    axes[0].plot(range(1, 13), accuracies, "o-", label=method)
    axes[1].semilogy(range(1, 13), [max(bias, 1e-8) for bias in biases], "o-")
    print(f"{method:9s} accuracy {accuracies[-1]:.3f}, bias of the first round {biases[0]:.1e}")
axes[0].set(xlabel="round", ylabel="accuracy, mean of four views")
axes[0].legend()
axes[1].set(xlabel="round", ylabel="largest bias of a matrix")
plt.show()

# %%
# Averaging factors (``fedit``) misses a part of the mean: :math:`\bar B \bar A` is not the mean of the products. ``flexlora`` sends
# the best update of the same rank, ``flora`` sends all of it, four times as many numbers. Rules differ by little where the
# bias is small, so look at it before choosing: :doc:`/results/federated` has nine rules over many runs.
#
# Everybody in a ball
# -------------------
# A ball is convex: the mean of its members is in it, and so is the best approximation of a lower rank. With a parameterization
# that cannot leave the ball, no client can push the model further than its radius, whatever it trained on.


def bounded(shape: tuple[int, int]) -> lo.NBLoRA:
    return lo.NBLoRA(shape, rank=4, radius=5.0)


accuracies, biases, clients = federate("flexlora", bounded, rate=0.2)
print(f"accuracy {accuracies[-1]:.3f}")
for name, update in adapter_updates(clients[0]).items():
    norm = float(update().schatten_norm(float("inf")).detach())
    print(f"{name}: spectral norm {norm:.3f}, in the ball:", update.feasible_set.contains(update()))

# %%
# One client goes wrong: its parameters are a thousand times too large. The mean does not leave the ball.

with torch.no_grad():
    for parameter in clients[3].parameters():
        if parameter.requires_grad:
            parameter.mul_(1e3)
for name, result in aggregate(clients, "flexlora").items():
    norm = float(result.update.schatten_norm(float("inf")))
    print(f"{name}: norm {norm:.3f}, proved: {result.feasible_set}")

# %%
# Who took part?
# --------------
# If no update can be longer than :math:`R` in the Frobenius norm, one of :math:`K` clients moves the mean by at most
# :math:`2 R / K`, and noise of a size that follows from :math:`R` alone hides it. Nothing has to be clipped. The price falls with
# the number of clients: here is the norm of the noise beside the bound, for one release at :math:`\epsilon = 4`.

for count in (10, 100, 1000):
    members = [lo.NBLoRA((30, 20), rank=2, radius=0.5, p=2) for _ in range(count)]
    released = private_merge(members, epsilon=4.0, delta=1e-5)
    print(
        f"{count:5d} clients: noise of norm {released.noise_norm:.3f}, updates of norm at most 0.5"
    )

# %%
# With ten clients the noise drowns what they have to say; with a thousand it does not. The guarantee is that of ideal noise in exact
# arithmetic: what it does not cover, and how rounds add up, is in :doc:`/how-to/merge-federated`.
