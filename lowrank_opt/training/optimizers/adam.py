"""Adam's moments on one tensor, for parameters that belong to no pair."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank_opt.training.algebra.tall import State as State


def adam_direction(
    gradient: Tensor, state: State, name: str, betas: tuple[float, float], eps: float
) -> Tensor:
    """Update the two moments stored under `name` and return Adam's direction, bias-corrected.

    References
    ----------
    Kingma and Ba (arXiv 1412.6980), Algorithm 1.
    """
    b1, b2 = betas
    g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if f"{name}_mean" not in state:
        state |= {f"{name}_{x}": torch.zeros_like(g) for x in ("mean", "square")}
    m: Tensor = state[f"{name}_mean"]
    v: Tensor = state[f"{name}_square"]
    t: int = state.get(f"{name}_step", 0) + 1
    state[f"{name}_step"] = t
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    # m / (1 - b1^t) over sqrt(v / (1 - b2^t)) + eps, the corrections in the denominator.
    correction = 1 - b1**t
    root = v.sqrt().mul_(correction / math.sqrt(1 - b2**t)).add_(correction * eps)
    return torch.div(m, root, out=root)


def corrected_decay(beta: float, t: int) -> float:
    """Return the decay at step t >= 1 that makes a running average the bias-corrected one.

    Examples
    --------
    >>> corrected_decay(0.9, 1), round(corrected_decay(0.9, 1000), 6)
    (0.0, 0.9)
    """
    return beta * (1 - beta ** (t - 1)) / (1 - beta**t)


def restore_precision(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Give a loaded state the precision in which it was stored.

    `torch.optim.Optimizer.load_state_dict` casts it to the dtype of the parameters: moments of
    half-precision parameters, kept in float32, would be rounded at every resumption.
    """
    numbers = [i for g in state_dict["param_groups"] for i in g["params"]]
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for number, p in zip(numbers, parameters, strict=True):
        for name, value in state_dict["state"].get(number, {}).items():
            if isinstance(value, Tensor):
                optimizer.state[p][name] = value.to(device=p.device, copy=True)
