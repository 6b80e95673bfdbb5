"""Small models that are cut among processes, what adapts them, and what is sent meanwhile."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank_opt as lo


class Net(nn.Module):
    """Each style once; seven outputs are no multiple of two."""

    def __init__(self):
        super().__init__()
        self.emb, self.words = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.up, self.down, self.head = nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.up(self.emb(x) + self.words(x)))
        return self.head(self.down(h))


def base():
    torch.manual_seed(0)
    return Net().double()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.down(torch.tanh(self.up(self.emb(x)))))


def tied():
    torch.manual_seed(0)
    return Tied().double()


def ball(shape):
    return lo.NBLoRA(shape, 2, radius=0.5)


def nora(shape, weight):
    return lo.nora(weight, 1, outer_rank=2)


FAMILIES = {
    "nblora": ball,
    "homogeneous": lambda s: lo.HomogeneousBall(s, 2, radius=0.5),
    "delora": lambda s: lo.DeLoRA(s, 2, radius=0.5),
    "adalora": lambda s: lo.AdaLoRA(s, 2),
    "nora": nora,
    "lora_xs": lambda s, weight: lo.lora_xs(weight, 2),
    "pissa": lambda s, weight: lo.pissa(weight, 2),
}


class Sent(TorchDispatchMode):
    """How many numbers each collective is called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func._schema.name.split("::")
        if space in ("c10d", "_c10d_functional") and "wait" not in name:
            tensors = [x for x in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(x)]
            self.calls.append((name, max(x.numel() for x in tensors)))
        return func(*args, **(kwargs or {}))
