"""Two tall matrices kept as products, so that chains of small matrices cost one tall product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Both: TypeAlias = tuple[Tensor, Tensor]


class TallPair(NamedTuple):
    """``spans[i] @ coordinates[i]`` for the two sides i of a matrix, not multiplied out.

    All small matrices of both sides are one tensor: at ranks of 4 to 64 the number of calls, not
    the arithmetic, is what they cost.

    Parameters
    ----------
    spans : tuple of Tensor, shapes (m, k), (n, k)
        float32 or float64; read, never written to.
    coordinates : Tensor, shape (2, k, r), optional
        In float64; the identity by default.

    Examples
    --------
    >>> twice = 2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    >>> x = TallPair((torch.ones(3, 2), torch.ones(5, 2))).times(twice)
    >>> x.dense()[0][0], x.inner(x)[:, 0, 0].tolist()
    (tensor([2., 2.]), [12.0, 20.0])
    """

    spans: Both
    coordinates: Tensor | None = None

    def times(self, cores: Tensor) -> TallPair:
        """Return the products with small float64 matrices, shape (2, r, s)."""
        known = self.coordinates
        return TallPair(self.spans, cores if known is None else known @ cores)

    def swapped(self) -> TallPair:
        """Return the sides in the other order."""
        known = self.coordinates
        return TallPair(self.spans[::-1], None if known is None else known.flip(0))

    def dense(self) -> Both:
        """Return the products, multiplied out, in the dtype of the spans."""
        if self.coordinates is None:
            return self.spans
        (x, y), (c, d) = self.spans, self.rounded()
        return x @ c, y @ d

    def inner(self, other: TallPair) -> Tensor:
        """Return ``self^T other``, shape (2, r, s), in float64; long sums as in the spans."""
        (x, y), (v, w) = self.spans, other.spans
        return self._in_coordinates(torch.stack((x.mT @ v, y.mT @ w)), other)

    def inner_of(self, other: TallPair, side: int) -> Tensor:
        """Return ``self^T other`` of one side only, shape (r, s)."""
        raw = self.spans[side].mT @ other.spans[side]
        return self._in_coordinates(raw, other, side)

    def _in_coordinates(
        self, product: Tensor, other: TallPair, side: int | slice = slice(None)
    ) -> Tensor:
        product = product.double()
        if self.coordinates is not None:
            product = self.coordinates[side].mT @ product
        return product if other.coordinates is None else product @ other.coordinates[side]

    def rounded(self) -> Tensor:
        """Return the coordinates, which must be there, in the dtype of the spans."""
        assert self.coordinates is not None, "checked by the caller"
        return self.coordinates.to(self.spans[0].dtype).contiguous()

    def size_bound(self, side: int) -> float:
        """Return an upper bound on the Frobenius norm of one side, up to rounding."""
        size = float(torch.linalg.vector_norm(self.spans[side]))
        known = self.coordinates
        return size if known is None else size * float(torch.linalg.vector_norm(known[side]))

    def copied(self) -> TallPair:
        """Return the same products, of copies of the spans."""
        return TallPair((self.spans[0].clone(), self.spans[1].clone()), self.coordinates)

    def put(self, state: dict[str, Any], name: str) -> None:
        """Store in an optimizer's state, as plain tensors."""
        state[f"{name}_0"], state[f"{name}_1"] = self.spans
        state.pop(f"{name}_coordinates", None)
        if self.coordinates is not None:
            state[f"{name}_coordinates"] = self.coordinates

    @classmethod
    def get(cls, state: dict[str, Any], name: str) -> TallPair:
        """Return what `put` stored."""
        spans = state[f"{name}_0"], state[f"{name}_1"]
        return cls(spans, state.get(f"{name}_coordinates"))


Terms: TypeAlias = Sequence[TallPair]


def scaled(terms: Terms, factor: float) -> Terms:
    """Return the sum times a number."""
    return [_times_number(x, factor) for x in terms]


def _times_number(x: TallPair, factor: float) -> TallPair:
    if x.coordinates is None:
        return TallPair((x.spans[0] * factor, x.spans[1] * factor))
    return TallPair(x.spans, x.coordinates * factor)


def evaluate(terms: Terms) -> Both:
    """Return the sum of products; new tensors, unless it is one span that is multiplied out."""
    first, *others = terms
    totals = first.dense()
    if others and first.coordinates is None:
        totals = totals[0].clone(), totals[1].clone()
    add_to(totals, others)
    return totals


def add_to(totals: Both, terms: Terms, weight: float = 1.0) -> None:
    """Add `weight` times a sum of products in place.

    Totals may be among the spans, or in half precision.
    """
    if _must_be_evaluated(totals, terms):
        for total, change in zip(totals, evaluate(terms), strict=True):
            total.add_((weight * change).to(total.dtype))
        return
    a, b = totals
    for x in terms:
        if x.coordinates is None:
            a.add_(x.spans[0], alpha=weight)
            b.add_(x.spans[1], alpha=weight)
        else:
            c, d = x.rounded()
            a.addmm_(x.spans[0], c, alpha=weight)
            b.addmm_(x.spans[1], d, alpha=weight)


def _must_be_evaluated(totals: Both, terms: Terms) -> bool:
    dtype, pointers = totals[0].dtype, [total.data_ptr() for total in totals]
    spans = [span for x in terms for span in x.spans]
    return any(span.dtype != dtype or span.data_ptr() in pointers for span in spans)
