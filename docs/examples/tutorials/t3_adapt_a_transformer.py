"""
Adapt a transformer, and keep what it knew
==========================================

We train a small transformer on one task, fine-tune it on another through adapters whose norm is bounded, measure what it
forgot, and wind the adapters back as far as the new task allows. The same calls work on any torch model.
"""

# %%
# A model that knows something
# ----------------------------
# Digits of 8 x 8 pixels, read as sequences of eight rows. The first task: which digit?

import torch
from sklearn.datasets import load_digits
from torch import nn

import lowrank_opt as lo
from lowrank_opt.nn import (
    adapt,
    disabled,
    load_adapter,
    merge,
    rewind,
    save_adapter,
    summary,
    unmerge,
)

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, valid, test = order[:1000], order[1000:1300], order[1300:]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.places = nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x) + self.places).mean(1))


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, steps: int, rate: float) -> None:
    """Train what is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


model = Reader()
fit(model, images[train], labels[train], steps=500, rate=3e-3)
print("upright digits:", accuracy(model, images[test], labels[test]))

# %%
# A new task
# ----------
# The same digits, moved by one pixel and darker. There are 60 examples.

moved = 0.6 * images.roll((1, 1), (1, 2))
few = train[:60]
print("moved digits:", accuracy(model, moved[test], labels[test]))

# %%
# Adapters inside a ball
# ----------------------
# ``adapt`` puts an update of rank 4 and spectral norm at most 1.5 on every linear weight, and freezes the rest. At the start
# the model computes exactly what it did.

before = model(images[test]).detach()
adapt(
    model, lambda shape: lo.NBLoRA(shape, rank=4, radius=1.5), targets="all-linear", exclude="head"
)
print("same outputs:", torch.equal(before, model(images[test])))

fit(model, moved[few], labels[few], steps=400, rate=1e-2)
print("moved digits:", accuracy(model, moved[test], labels[test]))
print("upright digits:", accuracy(model, images[test], labels[test]))
print(summary(model))

# %%
# Wind it back
# ------------
# The shorter an update, the less is forgotten. ``rewind`` walks from the trained norms to zero, and takes the point of least
# loss on held-out data of the new task; among equals the smaller. Every point is certified.


def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


report = rewind(
    model,
    validation=lambda: loss(moved[valid], labels[valid]),
    source=lambda: loss(images[valid], labels[valid]),
)
print(report.table())

# %%
# Here every step back costs something on the new task, so that nothing is wound back by itself: the table is the price list.
# With a radius you decide.

rewind(model, radius=1.9)
print("moved digits:", accuracy(model, moved[test], labels[test]))
print("upright digits:", accuracy(model, images[test], labels[test]))

# %%
# Switch it off, merge it, save it
# --------------------------------

import tempfile
from pathlib import Path

with disabled(model):
    print("the old model, bit for bit:", torch.equal(before, model(images[test])))

adapted = model(moved[test]).detach()
merge(model)
print("merged, largest difference:", float((model(moved[test]) - adapted).abs().max()))
unmerge(model)

folder = Path(tempfile.mkdtemp()) / "moved"
save_adapter(model, folder)
print(sorted(path.name for path in folder.iterdir()))

# %%
# Somebody else has the base model, and loads the adapter.

fresh = Reader()
with torch.no_grad(), disabled(model):
    fresh.load_state_dict(model.state_dict(), strict=False)
load_adapter(fresh, folder)
print("same answers:", torch.equal(fresh(moved[test]), model(moved[test])))
