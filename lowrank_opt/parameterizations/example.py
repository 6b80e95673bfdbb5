"""An example of a map: how it is made and what is said of it, for tables and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# What evaluations cost beyond the products that LoRA needs, said alike everywhere.
NONE, INVERSE, QR = "none", "one r x r inverse", "two thin QR"


@dataclass(frozen=True)
class Example:
    """One way to make a class, for any shape and rank.

    Attributes
    ----------
    name : str
        How it is written in code.
    make : callable
        ``make(shape, rank, dtype=)`` returns an instance; what is random comes from torch's
        generator, or from a fixed seed.
    cost : str
        Work of one evaluation beyond the products that LoRA needs.
    reference : str
    image : str
        What is reached, for maps that do not fill their set.
    listed : bool
        Whether the table of methods has a line for it; tests try all of them.

    Examples
    --------
    >>> from lowrank_opt import NBLoRA
    >>> [example.name for example in NBLoRA.examples()][:2]
    ['NBLoRA(radius)', 'NBLoRA(radius, p)']
    """

    name: str
    make: Callable[..., nn.Module]
    cost: str = NONE
    reference: str = ""
    image: str = ""
    listed: bool = True


def example_tensor(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a tensor of normal numbers, the same in every call.

    Examples
    --------
    >>> torch.equal(example_tensor(3, 2), example_tensor(3, 2))
    True
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
