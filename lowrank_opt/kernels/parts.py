"""The operations over entries of which every process has some: each computes on its own.

Factors are whole in every process, or those of rows are cut, or of both. The loss and its gradient
are summed, the rows of a half sweep gathered unless they are cut; a row (or column) is computed by
one process with all of its entries, in the same order as by a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.cut_columns import CutColumnsBackend
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed, ObservedBackend
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import CompressedAxis, Observations
from lowrank_opt.observations.part import Part, Side

R = TypeVar("R", covariant=True)
S = TypeVar("S")
Entries: TypeAlias = tuple[Observations, CompressedAxis]


def backend_for(observations: Observations) -> ObservedBackend:
    """Return what computes loss and gradient over all entries, those of other processes too."""
    inner, part = backend_of(observations.device), observations.part
    if part is None:
        return inner
    return CutColumnsBackend(inner, part) if part.cut_columns else PartBackend(inner, part)


@dataclass(frozen=True)
class PartBackend:
    """Loss and gradient of one's own entries, summed; entries are one's own.

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
        return self.inner.reads_half

    def squared_loss(
        self, model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
    ) -> tuple[Tensor, Gradient]:
        """Return the float64 sum of weighted squared residuals of all, and its gradient."""
        loss, gradient = self.inner.squared_loss(model, observations, weights, needed)
        return self.part.total(loss), self._summed(gradient)

    def entries(self, model: ModelParts, observations: Observations) -> Tensor:
        """Return the predictions of one's own entries."""
        return self.inner.entries(model, observations)

    def entries_gradient(
        self, model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
    ) -> Gradient:
        """Return the gradient of ``(gradient * entries).sum()`` over all."""
        own = self.inner.entries_gradient(model, observations, gradient, needed)
        return self._summed(own)

    def _summed(self, gradient: Gradient) -> Gradient:
        # Rows have entries in one process: theirs are gathered, which is half of a sum's traffic.
        rows = (gradient.left, gradient.row_bias)
        cols = (gradient.right, gradient.col_bias)
        left, row_bias = (
            None if x is None else self.part.gather(x[self.part.spans[0]], 0) for x in rows
        )
        right, col_bias = (None if x is None else self.part.total(x) for x in cols)
        return Gradient(left, right, row_bias, col_bias)


def row_problems(
    observations: Observations, dtype: torch.dtype
) -> tuple[RowProblems | PartialRows, RowProblems | PartialRows]:
    """Return the least-squares problems of all rows, and of all columns."""
    part = observations.part
    if part is None:
        axes = (observations.csr, observations.csc)
        rows, cols = (RowProblems.of(observations, x, dtype) for x in axes)
        return rows, cols
    first, second = (
        PartialRows([x.with_rows(RowProblems.of, dtype) for x in pieces], part, side)
        for side, pieces in _sides(observations, part)
    )
    return first, second


def gaussian_rows(
    observations: Observations, dtype: torch.dtype
) -> tuple[GaussianRows | PartialGaussianRows, GaussianRows | PartialGaussianRows]:
    """Return the entries of all rows, and of all columns, for Gaussian posteriors."""
    part = observations.part
    if part is None:
        axes = (observations.csr, observations.csc)
        rows, cols = (GaussianRows.of(observations, x, dtype) for x in axes)
        return rows, cols
    none = observations.values.new_empty(0, dtype=dtype)
    first, second = (
        PartialGaussianRows([x.with_rows(GaussianRows.of, dtype) for x in pieces], part, side, none)
        for side, pieces in _sides(observations, part)
    )
    return first, second


@dataclass(frozen=True, eq=False)
class Piece(Generic[R]):
    """Some of the rows (or columns) of a process, and where it finds the lines of the other side.

    Parameters
    ----------
    rows : RowProblems or GaussianRows, or None
        None if there are none left, while other processes have some.
    at : slice
        Which they are, among those of this process.
    fetch : callable
        Returns lines of the other side, which the other processes may have, as the entries of
        these rows count them. To be called in all processes.
    """

    rows: R
    at: slice
    fetch: Callable[[Tensor], Tensor]

    def with_rows(
        self: Piece[Entries | None],
        make: Callable[[Observations, CompressedAxis, torch.dtype], S],
        dtype: torch.dtype,
    ) -> Piece[S | None]:
        """Return the same with entries in the form of a kernel."""
        rows = None if self.rows is None else make(*self.rows, dtype)
        return Piece(rows, self.at, self.fetch)


def _sides(
    observations: Observations, part: Part[Observations]
) -> tuple[tuple[Side, list[Piece[Entries | None]]], tuple[Side, list[Piece[Entries | None]]]]:
    if part.cut_columns:
        rows = _pieces(observations, part, 0)
    else:
        rows = [_piece(observations, observations.csr, part.spans[0])]
    if part.cut:
        return (0, rows), (1, _pieces(observations, part, 1))
    by_columns = part.columns(observations)
    return (0, rows), (1, [_piece(by_columns, by_columns.csc, part.spans[1])])


def _pieces(
    observations: Observations, part: Part[Observations], side: Side
) -> list[Piece[Entries | None]]:
    found = list[Piece[Entries | None]]()
    for block in part.blocks(observations, side):
        o = block.entries
        entries = None if o is None else (o, o.csc if side else o.csr)
        found.append(Piece(entries, block.at, block.fetch))
    return found


def _piece(observations: Observations, axis: CompressedAxis, span: slice) -> Piece[Entries | None]:
    at = slice(0, span.stop - span.start)
    return Piece((observations, _cut(axis, span)), at, lambda lines: lines)


def _cut(axis: CompressedAxis, span: slice) -> CompressedAxis:
    """Return some consecutive groups of an axis, as an axis of their own."""
    pointers = axis.pointers[span.start : span.stop + 1]
    here = slice(int(pointers[0]), int(pointers[-1]))
    return CompressedAxis(pointers - pointers[0], axis.indices[here], axis.order[here])


@dataclass(frozen=True, eq=False)
class PartialRows:
    """`RowProblems` of which this process solves some, and gets the others' solutions.

    Parameters
    ----------
    pieces : list of Piece
        Of the rows (or columns) of this process.
    part : Part
    side : {0, 1}
        Rows or columns.
    """

    pieces: list[Piece[RowProblems | None]]
    part: Part[Observations]
    side: Side

    def solve(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        precision: Tensor,
        strengths: Tensor,
        scale: float = 1.0,
        pull: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> float:
        """Do what `RowProblems.solve` does, with all x and all strengths."""

        def step(rows: RowProblems, y: Tensor, F: Tensor, o: Tensor, at: slice) -> float:
            pulls, noises = (None if v is None else v[at] for v in (pull, noise))
            given = {"precision": precision, "strengths": strengths[at]}
            return rows.solve(y, F, o, **given, scale=scale, pull=pulls, noise=noises)

        return self._each(x, features, offsets, step)

    def improve(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        steps: int,
    ) -> float:
        """Do what `RowProblems.improve` does, with all x and all strengths."""

        def step(rows: RowProblems, y: Tensor, F: Tensor, o: Tensor, at: slice) -> float:
            given = {"diagonal": diagonal, "strengths": strengths[at]}
            return rows.improve(y, F, o, **given, steps=steps)

        return self._each(x, features, offsets, step)

    def solve_nonnegative(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        free: int,
    ) -> float:
        """Do what `RowProblems.solve_nonnegative` does, with all x and all strengths."""

        def step(rows: RowProblems, y: Tensor, F: Tensor, o: Tensor, at: slice) -> float:
            given = {"diagonal": diagonal, "strengths": strengths[at]}
            return rows.solve_nonnegative(y, F, o, **given, free=free)

        return self._each(x, features, offsets, step)

    def _each(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        step: Callable[[RowProblems, Tensor, Tensor, Tensor, slice], float],
    ) -> float:
        """Take a step for each piece, of given rows of all; return the sum of the losses."""
        span, loss = self.part.spans[self.side], 0.0
        y = x[span]
        for piece in self.pieces:
            F, o = piece.fetch(features), piece.fetch(offsets)
            if piece.rows is not None:
                loss += step(piece.rows, y[piece.at], F, o, _within(span, piece.at))
            # Before those of the next one come.
            del F, o
        gathered = self.part.gather(y, self.side)
        if gathered is not y:
            x.copy_(gathered)
        return float(self.part.total(x.new_tensor(loss, dtype=torch.float64)))


@dataclass(frozen=True, eq=False)
class PartialGaussianRows:
    """`GaussianRows` of which this process computes some, and gets the others' moments.

    Parameters
    ----------
    pieces : list of Piece
        Of the rows (or columns) of this process.
    part : Part
    side : {0, 1}
        Rows or columns.
    none : Tensor, shape (0,)
        What the weights are of a process that has no rows.
    """

    pieces: list[Piece[GaussianRows | None]]
    part: Part[Observations]
    side: Side
    none: Tensor

    @property
    def weights(self) -> Tensor:
        """Relative precisions of this process's entries."""
        found = (x.rows.weights for x in self.pieces if x.rows is not None)
        return torch.cat([self.none, *found])

    @property
    def positive_counts(self) -> Tensor:
        """Number of entries of positive weight in each row, of all processes, int64."""
        span = self.part.spans[self.side]
        counts = self.none.new_zeros(span.stop - span.start, dtype=torch.int64)
        for piece in self.pieces:
            if piece.rows is not None:
                counts[piece.at] = piece.rows.positive_counts
        return self.part.gather(counts, self.side)

    def posterior(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Tensor,
        precision: Tensor,
        pull: Tensor,
        multipliers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do what `GaussianRows.posterior` does, for all rows."""
        gather, found = self.part.gather, list[tuple[Tensor, Tensor]]()
        span = self.part.spans[self.side]
        here = Moments(own.means[span].clone(), own.products[span].clone())
        for piece, lines, weights in self._fetched(other, multipliers):
            at, mine = _within(span, piece.at), _part_of(here, piece.at)
            given = {"scales": scales[at], "precision": precision, "pull": pull[at]}
            assert piece.rows is not None, "as fetched"
            found.append(piece.rows.posterior(mine, lines, **given, multipliers=weights))
        own.means.copy_(gather(here.means, self.side))
        own.products.copy_(gather(here.products, self.side))
        none = (scales[:0], scales[:0])
        losses, logdets = (gather(torch.cat(x), self.side) for x in zip(none, *found, strict=True))
        return losses, logdets

    def draw(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Tensor,
        precision: Tensor,
        pull: Tensor,
        noise: Tensor,
        multipliers: Tensor | None = None,
    ) -> Tensor:
        """Do what `GaussianRows.draw` does, for all rows, with all their noise.

        The other side is one without spread: second moments of fetched lines are those of their
        means.
        """
        gather, found = self.part.gather, [scales[:0]]
        span = self.part.spans[self.side]
        here = Moments(own.means[span].clone(), own.products[span].clone())
        for piece, lines, weights in self._fetched(other, multipliers, certain=True):
            at, mine = _within(span, piece.at), _part_of(here, piece.at)
            given = {"scales": scales[at], "precision": precision, "pull": pull[at]}
            assert piece.rows is not None, "as fetched"
            found.append(
                piece.rows.draw(mine, lines, **given, noise=noise[at], multipliers=weights)
            )
        own.means.copy_(gather(here.means, self.side))
        own.repack()
        return gather(torch.cat(found), self.side)

    def _fetched(
        self, other: Moments, multipliers: Tensor | None, *, certain: bool = False
    ) -> Iterator[tuple[Piece[GaussianRows | None], Moments, Tensor | None]]:
        """Yield the pieces that have rows, with the lines of the other side."""
        for piece in self.pieces:
            means = piece.fetch(other.means)
            if certain and means is not other.means:
                # Made anew: they are K / 2 times as many numbers as the means.
                lines = Moments.of(means[:, :-2], means[:, -1])
            else:
                lines = Moments(means, piece.fetch(other.products))
            weights = None if multipliers is None else piece.fetch(multipliers)
            if piece.rows is not None:
                yield piece, lines, weights


def _within(span: slice, at: slice) -> slice:
    return slice(span.start + at.start, span.start + at.stop)


def _part_of(moments: Moments, at: slice) -> Moments:
    return Moments(moments.means[at], moments.products[at])
