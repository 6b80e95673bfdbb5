"""Gradients of adapters that were switched off between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def delivering(parameter: nn.Parameter) -> Callable[[Tensor | None], None]:
    """Return a hook that adds gradients to a parameter that is frozen by now.

    torch drops what arrives at a parameter that no longer asks for gradients, though the output
    that is differentiated was computed when it did.
    """

    def deliver(gradient: Tensor | None) -> None:
        # None comes where the parameter was evaluated with others, and only theirs were used.
        if gradient is not None and not parameter.requires_grad:
            own = gradient.detach().to(parameter.dtype)
            parameter.grad = own.clone() if parameter.grad is None else parameter.grad + own

    return deliver


def awake(parameter: nn.Parameter) -> Tensor:
    """Return the numbers of a frozen parameter, asking for gradients, which go to the parameter."""
    if parameter.requires_grad or not torch.is_grad_enabled():
        return parameter
    alias = parameter.detach().requires_grad_()
    alias.register_hook(delivering(parameter))
    return alias
