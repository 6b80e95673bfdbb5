"""What tests are made of: numbers from a seed, the same on every machine."""

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator whose numbers the seed decides."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers, drawn in float64 and rounded to `dtype`."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)
