"""Two tall matrices kept as products, so that chains of small matrices cost one tall product.

A step of an optimizer over pairs is, on each side, ``X A B C + Y D`` with X, Y of n rows and A to D
r x r. Multiplied from the left it costs four tall products; collected from the right, two. A
`TallPair` is one term of such a sum, for both sides of a matrix at once; `Terms` is the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lowrank_opt.training.algebra.small import Small, array, frobenius, small, stacked, tensor

Both: TypeAlias = tuple[Tensor, Tensor]
# What an optimizer remembers of one parameter.
State: TypeAlias = dict[str, Any]


class TallPair(NamedTuple):
    """``spans[i] @ coordinates[i]`` for the two sides i of a matrix, not multiplied out.

    `times` and `weighted` only change the coordinates; `inner` needs one product of spans; `dense`
    multiplies out. The small matrices of both sides are one array: half the number of calls.

    Parameters
    ----------
    spans : tuple of Tensor, shapes (m, k), (n, k)
        float32 or float64; read, never written to.
    coordinates : Small, shape (2, k, r), optional
        The identity by default.

    Examples
    --------
    >>> twice = torch.stack((2 * torch.eye(2), 2 * torch.eye(2)))
    >>> x = TallPair((torch.ones(3, 2), torch.ones(5, 2))).times(small(twice))
    >>> x.dense()[0][0], x.inner(x)[:, 0, 0].tolist()
    (tensor([2., 2.]), [12.0, 20.0])
    """

    spans: Both
    coordinates: Small | None = None

    def times(self, cores: Small) -> TallPair:
        """Return the products with small matrices, shape (2, r, s)."""
        known = self.coordinates
        return TallPair(self.spans, cores if known is None else known @ cores)

    def weighted(self, weights: tuple[float, float]) -> TallPair:
        """Return each side times a number."""
        if self.coordinates is None:
            x, y = self.spans
            return TallPair((x * weights[0], y * weights[1]))
        return TallPair(self.spans, self.coordinates * _column(weights, self.coordinates))

    def swapped(self) -> TallPair:
        """Return the sides in the other order."""
        known = self.coordinates
        first, second = self.spans
        return TallPair((second, first), None if known is None else known[[1, 0]])

    def dense(self) -> Both:
        """Return the products, multiplied out, in the dtype of the spans."""
        if self.coordinates is None:
            return self.spans
        (x, y), (c, d) = self.spans, self.rounded()
        return torch.mm(x, c), torch.mm(y, d)

    def inner(self, other: TallPair) -> Small:
        """Return ``self^T other``, shape (2, r, s); the long sums are in the dtype of the spans."""
        (x, y), (v, w) = self.spans, other.spans
        like = self.coordinates if self.coordinates is not None else other.coordinates
        product = stacked(torch.mm(x.t(), v), torch.mm(y.t(), w), like)
        if self.coordinates is not None:
            product = self.coordinates.mT @ product
        return product if other.coordinates is None else product @ other.coordinates

    def inner_of(self, other: TallPair, side: int) -> Small:
        """Return ``self^T other`` of one side only, shape (r, s)."""
        like = self.coordinates if self.coordinates is not None else other.coordinates
        product = small(self.spans[side].mT @ other.spans[side], like)
        if self.coordinates is not None:
            product = self.coordinates[side].mT @ product
        return product if other.coordinates is None else product @ other.coordinates[side]

    def rounded(self) -> tuple[Tensor, ...]:
        """Return the coordinates, which must be there, in the dtype of the spans."""
        assert self.coordinates is not None, "checked by the caller"
        return tensor(self.coordinates, self.spans[0].dtype).unbind()

    def size_bound(self, side: int) -> float:
        """Return an upper bound on the Frobenius norm of one side, up to rounding."""
        size = float(torch.linalg.vector_norm(self.spans[side]))
        return size if self.coordinates is None else size * frobenius(self.coordinates[side])

    def copied(self) -> TallPair:
        """Return the same products, of copies of the spans."""
        return TallPair((self.spans[0].clone(), self.spans[1].clone()), self.coordinates)

    def put(self, state: State, name: str) -> None:
        """Store in an optimizer's state, as plain tensors."""
        state[f"{name}_0"], state[f"{name}_1"] = self.spans
        state.pop(f"{name}_coordinates", None)
        if self.coordinates is not None:
            state[f"{name}_coordinates"] = tensor(self.coordinates)

    @classmethod
    def get(cls, state: State, name: str, like: Small) -> TallPair:
        """Return what `put` stored, with coordinates of the kind of `like`."""
        spans = state[f"{name}_0"], state[f"{name}_1"]
        known = state.get(f"{name}_coordinates")
        return cls(spans, None if known is None else small(known, like))


def _column(weights: tuple[float, float], like: Small) -> Small:
    return array([[[weight]] for weight in weights], like)


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
    if len(terms) == 1:
        return terms[0].dense()
    # What has coordinates is new when it is multiplied out, and the rest can be added to it.
    first, *others = sorted(terms, key=lambda x: x.coordinates is None)
    totals = first.dense() if first.coordinates is not None else first.copied().spans
    add_to(totals, others)
    return totals


def add_to(totals: Both, terms: Terms, weight: float = 1.0) -> None:
    """Add `weight` times a sum of products in place.

    Totals may be among the spans, or in half precision.
    """
    a, b = totals
    if _must_be_evaluated(totals, terms):
        terms = [TallPair(evaluate(terms))]
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
