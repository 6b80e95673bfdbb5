"""Entrywise steps of merging methods: trim, elect a sign and average, drop at random.

They act on entries, so on whatever coordinates the tensors are given in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_largest(x: Tensor, density: float) -> Tensor:
    """Return `x` with all but a share of its largest entries set to zero.

    Parameters
    ----------
    x : Tensor, any shape
    density : float
        In (0, 1]; at least one entry is kept, and equal ones together.

    Examples
    --------
    >>> keep_largest(torch.tensor([3.0, -4.0, 1.0, 2.0]), 0.5)
    tensor([ 3., -4.,  0.,  0.])
    """
    count = max(1, round(density * x.numel()))
    if count >= x.numel():
        return x
    size = x.abs()
    return x.where(size >= size.flatten().topk(count).values[-1], 0.0)


def elect_sign_and_average(terms: Sequence[Tensor]) -> Tensor:
    """Return, for each entry, the mean of the nonzero terms with the sign of their sum.

    Parameters
    ----------
    terms : sequence of Tensor
        Of one shape.

    References
    ----------
    Yadav et al., TIES-Merging (arXiv 2306.01708), steps 2 and 3 of algorithm 1.

    Examples
    --------
    >>> elect_sign_and_average([torch.tensor([4.0, 0.0]), torch.tensor([-1.0, 2.0])])
    tensor([4., 2.])
    """
    stack = torch.stack(list(terms))
    sign = stack.sum(dim=0).sign()
    agrees = (stack.sign() == sign) & (stack != 0)
    return (stack * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)


def drop_and_rescale(x: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """Return `x` with entries dropped at random and the others divided by `density`.

    The expectation is `x`.

    Parameters
    ----------
    x : Tensor, any shape
    density : float
        In (0, 1], the probability to keep an entry.
    generator : torch.Generator, optional

    References
    ----------
    Yu et al., DARE (arXiv 2311.03099), section 3.2.

    Examples
    --------
    >>> kept = drop_and_rescale(torch.ones(1000), 0.25, torch.Generator().manual_seed(0))
    >>> sorted(set(kept.tolist()))
    [0.0, 4.0]
    """
    device = x.device if generator is None else generator.device
    kept = torch.rand(x.shape, generator=generator, device=device) < density
    return x.where(kept.to(x.device), 0.0) / density
