"""The largest singular values of a base weight: what bounds updates that are tied to it."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from lowrank_opt.linalg import leading_svd


class LeadingValues:
    """The leading singular values of a weight, computed again when another one was loaded."""

    def __init__(self) -> None:
        self._weight: weakref.ref[Tensor] | None = None
        self._key: tuple[int, ...] = ()
        self._values = torch.empty(0)

    def of(self, weight: Tensor, count: int) -> Tensor:
        """Return the `count` largest values, in float64 on the CPU."""
        # Tensors made in inference mode count no versions, and cannot be written to elsewhere.
        key = (count, 0 if weight.is_inference() else weight._version)
        if self._weight is None or self._weight() is not weight or self._key != key:
            self._values = leading_svd(weight.detach(), count)[1].cpu()
            self._weight, self._key = weakref.ref(weight), key
        return self._values

    def __reduce__(self) -> tuple[type[LeadingValues], tuple[()]]:
        # Copies look at their own weight.
        return type(self), ()
