"""Tall matrices kept as products, so that chains of small matrices cost one tall product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tall:
    """``span @ coordinates``, not multiplied out.

    Parameters
    ----------
    span : Tensor, shape (m, k)
        float32 or float64; read, never written to.
    coordinates : Tensor, shape (k, r), optional
        In float64; the identity by default.

    Examples
    --------
    >>> x = Tall(torch.ones(3, 2)).times(2 * torch.eye(2, dtype=torch.float64))
    >>> x.dense()[0], x.inner(x)[0, 0].item()
    (tensor([2., 2.]), 12.0)
    """

    span: Tensor
    coordinates: Tensor | None = None

    def times(self, core: Tensor) -> Tall:
        """Return the product with a small float64 matrix."""
        known = self.coordinates
        return Tall(self.span, core if known is None else known @ core)

    def dense(self) -> Tensor:
        """Return the product, multiplied out, in the dtype of the span."""
        core = self.coordinates
        return self.span if core is None else self.span @ core.to(self.span.dtype).contiguous()

    def inner(self, other: Tall) -> Tensor:
        """Return ``self^T other`` in float64; the long sums are in the dtype of the spans."""
        product = (self.span.mT @ other.span).double()
        if self.coordinates is not None:
            product = self.coordinates.mT @ product
        return product if other.coordinates is None else product @ other.coordinates

    def size_bound(self) -> Tensor:
        """Return an upper bound on the Frobenius norm, up to rounding."""
        size = torch.linalg.vector_norm(self.span).double()
        core = self.coordinates
        return size if core is None else size * torch.linalg.vector_norm(core)


def inner_products(pairs: Sequence[tuple[Tall, Tall]]) -> Tensor:
    """Return ``x^T y`` for each pair of one rank, shape (count, r, r), as `Tall.inner` does."""
    left, right = ([pair[side].coordinates for pair in pairs] for side in (0, 1))
    if any(x is None for x in (*left, *right)):
        return torch.stack([x.inner(y) for x, y in pairs])
    raw = torch.stack([x.span.mT @ y.span for x, y in pairs]).double()
    return _stacked(left).mT @ raw @ _stacked(right)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([x for x in parts if x is not None])


def store(state: dict[str, Any], name: str, x: Tall) -> None:
    """Put a copy into an optimizer's state, as plain tensors."""
    state[name] = x.span.clone()
    state.pop(f"{name}_coordinates", None)
    if x.coordinates is not None:
        state[f"{name}_coordinates"] = x.coordinates


def stored(state: dict[str, Any], name: str) -> Tall:
    """Return what `store` put there."""
    return Tall(state[name], state.get(f"{name}_coordinates"))


Terms: TypeAlias = Sequence[Tall]


def scaled(terms: Terms, factor: float) -> Terms:
    """Return the sum times a number."""
    return [
        Tall(x.span * factor) if x.coordinates is None else Tall(x.span, x.coordinates * factor)
        for x in terms
    ]


def evaluate(terms: Terms) -> Tensor:
    """Return the sum of products as a new tensor."""
    first, *others = terms
    total = first.span.clone() if first.coordinates is None else first.dense()
    add_to(total, others)
    return total


def add_to(total: Tensor, terms: Terms) -> None:
    """Add a sum of products in place; `total` itself may be among the spans, or half precision."""
    aliased = any(x.span.data_ptr() == total.data_ptr() for x in terms)
    if terms and (aliased or terms[0].span.dtype != total.dtype):
        total.add_(evaluate(terms).to(total.dtype))
        return
    for x in terms:
        if x.coordinates is None:
            total.add_(x.span)
        else:
            total.addmm_(x.span, x.coordinates.to(total.dtype).contiguous())
