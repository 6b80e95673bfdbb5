"""Readable names of factories."""

from __future__ import annotations

from functools import partial

import torch

from lowrank_opt.testing.cases.case import Factory


def describe(make: Factory) -> str:
    """Return a short readable name, e.g. ``NBLoRA(radius=3.0)``.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> describe(partial(NBLoRA, radius=3.0))
    'NBLoRA(radius=3.0)'
    """
    if not isinstance(make, partial):
        return getattr(make, "__name__", type(make).__name__)
    words = [_short(a) for a in make.args] + [f"{k}={_short(v)}" for k, v in make.keywords.items()]
    return f"{describe(make.func)}({', '.join(words)})"


def _short(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    return getattr(value, "__name__", repr(value))
