"""
Fronts of adapters
==================

A network has learnt digits. Adapters teach it the same digits turned by a quarter, a task of its own, and the further an update may
go, the more of the upright digits is forgotten. Each point is one training run; lines join the radii of a family, and the learning
rates of LoRA, which has no radius to choose.
"""

import math
from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import adapt, disabled

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
turned = x.rot90(1, (1, 2)).flatten(1)
upright = x.flatten(1)
seen, held = slice(0, 1200), slice(1200, None)


def train(model: nn.Module, inputs: torch.Tensor, steps: int, rate: float) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: torch.Tensor) -> float:
    return float((model(inputs[held]).argmax(1) == y[held]).float().mean())


base = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
train(base, upright, steps=500, rate=3e-3)
state = base.state_dict()

radii = [0.5, 1.0, 1.5, 2.0]
families = {
    "NBLoRA, spectral": (lambda r: partial(lo.NBLoRA, rank=4, radius=r), radii),
    "HomogeneousBall, nuclear": (
        lambda r: partial(lo.HomogeneousBall, rank=4, radius=4 * r),
        radii,
    ),
    "NBLoRA, Frobenius": (lambda r: partial(lo.NBLoRA, rank=4, radius=2 * r, p=2), radii),
    "LoRA": (lambda _: partial(lo.Factored, rank=4), [2e-3, 5e-3, 1e-2, 3e-2]),
}

figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for name, (make, choices) in families.items():
    points = []
    for choice in choices:
        model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        model.load_state_dict(state)
        torch.manual_seed(1)  # the same start and the same batches for all
        adapt(model, make(choice), targets="all-linear")
        train(model, turned, steps=120, rate=choice if name == "LoRA" else 1e-2)
        points.append((accuracy(model, upright), accuracy(model, turned)))
        with disabled(model):
            assert math.isclose(
                accuracy(model, upright), accuracy(base, upright)
            )  # nothing is lost
    axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
    print(f"{name:26s}", "  ".join(f"{kept:.2f}/{new:.2f}" for kept, new in points))
axis.set(xlabel="accuracy on upright digits, kept", ylabel="accuracy on turned digits, learnt")
axis.legend(fontsize=8)
plt.show()
