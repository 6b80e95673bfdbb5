"""How adapters are put in, merged and taken out, and the small models that they are tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_opt.nn import (
    active_adapters,
    adapt,
    adapted_weights,
    disabled,
    merge,
    unmerge,
)
from lowrank_opt.parameterizations import Parameterization
from lowrank_opt.testing.cases.oracle import dense

Make = Callable[[tuple[int, int]], Parameterization]


@dataclass(frozen=True)
class AdapterMethod:
    """A way of adapting models, to be checked.

    Parameters
    ----------
    adapt : callable
        From a model and a function of a shape to the adapted model: every matrix gets an update.
    updates : callable
        From an adapted model, not merged, to the dense update of each weight, by the name that the
        weight has in the base model. The truth that forward and merging are compared with.
    merge, unmerge : callable
        Of an adapted model, in place.
    disabled : callable
        Returns a context in which the model computes as the base model.
    """

    adapt: Callable[[nn.Module, Make], nn.Module]
    updates: Callable[[nn.Module], Mapping[str, Tensor]]
    merge: Callable[[nn.Module], None]
    unmerge: Callable[[nn.Module], None]
    disabled: Callable[[nn.Module], AbstractContextManager[None]]


def dense_updates(model: nn.Module) -> dict[str, Tensor]:
    """Return the dense updates of the active adapters of `lowrank_opt.nn`, from their factors."""
    base = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for adapted in adapted_weights(model, active_adapters(model)):
        W0 = base[adapted.name]
        parts = [torch.from_numpy(dense(member())) for member in adapted.updates]
        update = torch.stack(parts).reshape(W0.shape).to(W0)
        name = adapted.name
        found[name] = found[name] + update if name in found else update
    return found


# The adapters of this package.
METHOD = AdapterMethod(
    adapt=lambda model, make: adapt(model, make, targets=".*"),
    updates=dense_updates,
    merge=merge,
    unmerge=unmerge,
    disabled=disabled,
)


class Attention(nn.Module):
    """Self-attention of torch, with one output."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention: nn.MultiheadAttention = nn.MultiheadAttention(size, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values."""
        return self.attention(x, x, x, need_weights=False)[0]


class Chain(nn.Module):
    """Two linear layers with a nonlinearity between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first: nn.Linear
        self.second: nn.Linear
        self.first, self.second = nn.Linear(inputs, 5), nn.Linear(5, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the second layer of the first."""
        return self.second(self.first(x).tanh())


ModelAndInput = tuple[nn.Module, tuple[Tensor, ...]]


def small_models(shape: tuple[int, int]) -> dict[str, ModelAndInput]:
    """Return a model of each kind with an input, in the default dtype; m outputs, n inputs."""
    m, n = shape
    return {
        "linear": (nn.Linear(n, m), (torch.randn(2, 3, n),)),
        "two linear layers": (Chain(n, m), (torch.randn(4, n),)),
        "embedding": (nn.Embedding(m, n), (torch.randint(m, (2, 3)),)),
        "convolution": (nn.Conv1d(2 * n, 2 * m, 3, groups=2), (torch.randn(2, 2 * n, 5),)),
        "attention": (Attention(4), (torch.randn(2, 3, 4),)),
    }
