"""Layers that become plain: their weight is a parameter, whatever it was stored in before."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank_opt.nn.basis import storage


@torch.no_grad()
def become_plain(module: nn.Module, name: str, weight: Tensor) -> None:
    """Give a layer whose weight is sealed a plain one, in place, and forget how it was stored.

    Parameters
    ----------
    module : nn.Module
        Not adapted. Where its forward alone knew the weight, it becomes a ``torch.nn.Linear``.
    name : str
    weight : Tensor
        Its new numbers.
    """
    parameter = nn.Parameter(weight.detach(), requires_grad=False)
    if storage.is_coded(module, name):
        _become_linear(module, parameter)
    elif parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    elif name in module.__dict__:
        _forget_hooks(module, name)
    setattr(module, name, parameter)


def _become_linear(module: nn.Module, weight: nn.Parameter) -> None:
    m, n = weight.shape
    bias = storage.constant_part(module, weight)
    fresh = nn.Linear(n, m, bias=bool(bias.any()), device="meta")
    fresh.weight, fresh.training = weight, module.training
    if fresh.bias is not None:
        fresh.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    hooks = {key: x for key, x in module.__dict__.items() if key.endswith("_hooks")}
    module.__class__ = nn.Linear
    module.__dict__.clear()
    module.__dict__.update({**fresh.__dict__, **hooks})


def _forget_hooks(module: nn.Module, name: str) -> None:
    """Forget the hooks of torch that compute a weight, and the tensors that they made it of."""
    for hook, key in storage.hooks_of_torch(module).items():
        if name in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            del module._forward_pre_hooks[key]  # pyright: ignore[reportPrivateUsage]
    del module.__dict__[name]
    for kept in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
        for key in [key for key in kept if key.startswith(f"{name}_")]:
            del kept[key]
