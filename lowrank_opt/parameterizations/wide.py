"""Constants of a module that keep their precision when the module goes to half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module some of whose buffers stay in float32 or better, whatever dtype it is moved to.

    Frames rounded to half precision are not orthonormal to more than 1e-3, and what is rounded
    once cannot be had back: buffers are converted from what they were, not from what a narrow
    dtype left of them.

    Attributes
    ----------
    wide : tuple of str
        Their names; a subclass states them.

    Examples
    --------
    >>> class Third(WideBuffers):
    ...     wide = ("value",)
    ...
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("value", torch.tensor(1 / 3))
    >>> Third().bfloat16().value
    tensor(0.3333)
    """

    wide: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: getattr(self, name) for name in self.wide}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new is not None and new.dtype != old.dtype:
                dtype = torch.promote_types(new.dtype, torch.float32)
                setattr(self, name, self.converted(old).to(new.device, dtype))
        return self

    def converted(self, buffer: Tensor) -> Tensor:
        """Return a buffer before it is moved to another dtype; here, as it is."""
        return buffer
