"""Loss and gradient where no process has all lines of either factor, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed, ObservedBackend
from lowrank_opt.observations import Observations, SparsityPattern
from lowrank_opt.observations.part import Block, Part


class _Piece(NamedTuple):
    """The entries of some rows, and the model in the columns that they name."""

    block: Block[Observations]
    entries: Observations | None
    model: ModelParts


_known: WeakKeyDictionary[SparsityPattern, Sequence[Block[Observations]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class CutColumnsBackend:
    """An `ObservedBackend` of rows and columns that are cut; entries are one's own.

    Lines of columns, with their biases, are fetched from the processes that have them for a block
    of rows at a time, and their gradients are sent back.

    Parameters
    ----------
    inner : ObservedBackend
    part : Part
    """

    inner: ObservedBackend
    part: Part[Observations]

    @property
    def reads_half(self) -> bool:
        """Whether the right factor may be of half precision."""
        return False

    def squared_loss(
        self, model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
    ) -> tuple[Tensor, Gradient]:
        """Return the float64 sum of weighted squared residuals of all, and its gradient."""
        loss, gradient = model.left.new_zeros((), dtype=torch.float64), _nothing(model, needed)
        for piece in self._pieces(model, observations):
            found = _nothing(piece.model, needed)
            if piece.entries is not None:
                w = None if weights is None else weights[piece.block.places]
                here, found = self.inner.squared_loss(piece.model, piece.entries, w, needed)
                loss += here
            _add(gradient, found, piece.block)
        return self.part.total(loss), gradient

    def entries(self, model: ModelParts, observations: Observations) -> Tensor:
        """Return the predictions of one's own entries."""
        found = model.left.new_empty(len(observations))
        for piece in self._pieces(model, observations):
            if piece.entries is not None:
                found[piece.block.places] = self.inner.entries(piece.model, piece.entries)
        return found

    def entries_gradient(
        self, model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
    ) -> Gradient:
        """Return the gradient of ``(gradient * entries).sum()`` over all."""
        whole = _nothing(model, needed)
        for piece in self._pieces(model, observations):
            found = _nothing(piece.model, needed)
            if piece.entries is not None:
                own = gradient[piece.block.places]
                found = self.inner.entries_gradient(piece.model, piece.entries, own, needed)
            _add(whole, found, piece.block)
        return whole

    def _pieces(self, model: ModelParts, observations: Observations) -> Iterator[_Piece]:
        blocks = _known.get(observations.pattern)
        if blocks is None:
            blocks = _known[observations.pattern] = self.part.blocks(observations, 0)
        cols = model.right
        if model.col_bias is not None:
            cols = torch.cat((cols, model.col_bias.unsqueeze(1)), dim=1)
        for block in blocks:
            lines, at, b = block.fetch(cols), block.at, model.row_bias
            right, bias = lines, None
            if model.col_bias is not None:
                right, bias = lines[:, :-1].contiguous(), lines[:, -1].contiguous()
            here = ModelParts(model.left[at], right, None if b is None else b[at], bias)
            yield _Piece(block, _with_values(block, observations), here)


def _with_values(block: Block[Observations], observations: Observations) -> Observations | None:
    """Return the entries of a block with the values of those at hand."""
    if block.entries is None:
        return None
    w = observations.weights
    return Observations.of_pattern(
        block.entries.pattern,
        observations.values[block.places],
        None if w is None else w[block.places],
    )


def _nothing(model: ModelParts, needed: Needed) -> Gradient:
    return Gradient(
        *(
            torch.zeros_like(x) if asked and x is not None else None
            for x, asked in zip(model, needed, strict=True)
        )
    )


def _add(whole: Gradient, found: Gradient, block: Block[Observations]) -> None:
    """Add the gradient of a block: of rows in their place, of columns where their lines are."""
    for x, y in ((whole.left, found.left), (whole.row_bias, found.row_bias)):
        if x is not None and y is not None and len(y) > 0:
            x[block.at] += y
    pairs = ((whole.right, found.right), (whole.col_bias, found.col_bias))
    asked = [(_table(x), _table(y)) for x, y in pairs if x is not None and y is not None]
    if not asked:
        return
    sent = torch.cat([y for _, y in asked], dim=1)
    back = sent.new_zeros(len(asked[0][0]), sent.shape[1])
    block.give_back(sent, back)
    for (x, _), lines in zip(asked, back.split([x.shape[1] for x, _ in asked], dim=1), strict=True):
        x += lines


def _table(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.unsqueeze(1)
