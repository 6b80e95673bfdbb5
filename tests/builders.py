"""What tests are made of: numbers from a seed, the same on every machine."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lowrank_opt.parameterizations.catalog import examples


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator whose numbers the seed decides."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers, drawn in float64 and rounded to `dtype`."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def made(shape: tuple[int, int], rank: int, *names: str) -> dict[str, Callable[..., nn.Module]]:
    """Return how examples of these names are made at a shape and rank: ``make(dtype=)``."""
    known = {example.name: example.make for example in examples()}
    return {name: partial(known[name], shape, rank) for name in names}
