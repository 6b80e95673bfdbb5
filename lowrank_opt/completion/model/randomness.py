"""Random starts that are the same wherever the entries are."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    *,
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return standard normal numbers where a tensor is, drawn where the generator is.

    Without a generator, from that of the CPU: a seed gives the same numbers on every device.

    Parameters
    ----------
    shape : tuple of int
    generator : torch.Generator or None
    like : Tensor
        Its device is taken, and its dtype.
    dtype : torch.dtype, optional
        Instead.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> normal((2, 3), generator, like=torch.zeros(())).shape
    torch.Size([2, 3])
    """
    where = torch.device("cpu") if generator is None else generator.device
    kind = like.dtype if dtype is None else dtype
    return torch.randn(shape, generator=generator, dtype=kind, device=where).to(like.device)
