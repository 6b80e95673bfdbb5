"""The kinds of models that adapters are played with."""

import torch
from torch import Tensor, nn

from lowrank_opt.nn import LayerKind
from lowrank_opt.testing.laws.adapter_stage import Stage


class Tied(nn.Module):
    """An embedding whose table is the weight of the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.emb.weight
        self.norm = nn.LayerNorm(4)

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.norm(self.emb(indices).tanh()))


class Across(nn.Module):
    """A layer that keeps its weight as in x out, the class of GPT-2."""

    lowrank_kind = LayerKind(
        lambda layer: ("weight",),
        lambda layer, op, x, y: op.mT.linear(x),
        outputs="columns",
        rescale=lambda layer, lengths, x, y: (y - layer.bias) * lengths,
    )

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.randn(m))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Reader(nn.Module):
    """A module that reads the weight of a part of it, and has a parameter and a buffer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.scale = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))
        self.register_buffer("seen", torch.zeros(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.part.weight, self.part.bias)
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * y.detach().mean(0)
        return self.head(y * self.scale.sum(0) - self.seen)


def _built(build):
    def model():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().double().eval()

    return model


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def _plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def _across():
    return nn.Sequential(Across(3, 4), nn.Tanh(), nn.Linear(4, 2))


def _normalised():
    return nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )


def _hidden():
    """A head whose weight is computed from parameters below it."""
    head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), head)


STAGES = {
    "linear": Stage(_built(_plain), (_normal(5, 3),), "0", "2", has_inputs=True),
    "across": Stage(_built(_across), (_normal(5, 3),), "0", "2", has_inputs=True),
    "normalised": Stage(_built(_normalised), (_normal(5, 2, 4),), "0|4", has_inputs=True),
    "normalised head": Stage(_built(_normalised), (_normal(5, 2, 4),), "0", "1|4"),
    "weight norm": Stage(_built(_hidden), (_normal(5, 3),), "0", "2"),
    "tied": Stage(_built(Tied), (torch.tensor([[1, 2, 0], [6, 0, 2]]),), "emb", "norm"),
    "recurrent": Stage(_built(Recurrent), (_normal(3, 4, 3),), "lstm", "head"),
    "attention": Stage(_built(Attending), (_normal(3, 2, 4),), "attention", "head"),
    "reader": Stage(_built(Reader), (_normal(5, 3),), "part|scale", "head"),
}
