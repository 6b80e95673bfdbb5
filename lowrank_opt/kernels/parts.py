"""The operations over entries of which every process has some: each computes on its own.

Factors are whole in every process. The loss and its gradient are summed, the rows of a half sweep
gathered; a row (or column) is computed by one process with all of its entries, in the same order
as by a single process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed, ObservedBackend
from lowrank_opt.kernels.row_solves import RowProblems
from lowrank_opt.observations import CompressedAxis, Observations
from lowrank_opt.observations.part import Part, Side


def backend_for(observations: Observations) -> ObservedBackend:
    """Return what computes loss and gradient over all entries, those of other processes too."""
    inner, part = backend_of(observations.device), observations.part
    return inner if part is None else PartBackend(inner, part)


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
        PartialRows(RowProblems.of(of, _cut(axis, part.spans[side]), dtype), part, side)
        for of, axis, side in _sides(observations, part)
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
    first, second = (
        PartialGaussianRows(GaussianRows.of(of, _cut(axis, part.spans[side]), dtype), part, side)
        for of, axis, side in _sides(observations, part)
    )
    return first, second


def _sides(
    observations: Observations, part: Part[Observations]
) -> tuple[tuple[Observations, CompressedAxis, Side], tuple[Observations, CompressedAxis, Side]]:
    by_columns = part.columns(observations)
    return (observations, observations.csr, 0), (by_columns, by_columns.csc, 1)


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
    own : RowProblems
        Of the rows (or columns) of this process.
    part : Part
    side : {0, 1}
        Rows or columns.
    """

    own: RowProblems
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
        span = self.part.spans[self.side]
        y = x[span].clone()
        pulls, noises = (None if v is None else v[span] for v in (pull, noise))
        loss = self.own.solve(
            y,
            features,
            offsets,
            precision=precision,
            strengths=strengths[span],
            scale=scale,
            pull=pulls,
            noise=noises,
        )
        return self._gathered(x, y, loss)

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
        span = self.part.spans[self.side]
        y, given = x[span].clone(), {"diagonal": diagonal, "strengths": strengths[span]}
        loss = self.own.improve(y, features, offsets, **given, steps=steps)
        return self._gathered(x, y, loss)

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
        span = self.part.spans[self.side]
        y, given = x[span].clone(), {"diagonal": diagonal, "strengths": strengths[span]}
        loss = self.own.solve_nonnegative(y, features, offsets, **given, free=free)
        return self._gathered(x, y, loss)

    def _gathered(self, x: Tensor, y: Tensor, loss: float) -> float:
        x.copy_(self.part.gather(y, self.side))
        return float(self.part.total(x.new_tensor(loss, dtype=torch.float64)))


@dataclass(frozen=True, eq=False)
class PartialGaussianRows:
    """`GaussianRows` of which this process computes some, and gets the others' moments.

    Parameters
    ----------
    own : GaussianRows
        Of the rows (or columns) of this process.
    part : Part
    side : {0, 1}
        Rows or columns.
    """

    own: GaussianRows
    part: Part[Observations]
    side: Side

    @property
    def weights(self) -> Tensor:
        """Relative precisions of this process's entries."""
        return self.own.weights

    @property
    def positive_counts(self) -> Tensor:
        """Number of entries of positive weight in each row, of all processes, int64."""
        return self.part.gather(self.own.positive_counts, self.side)

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
        span, gather = self.part.spans[self.side], self.part.gather
        here = Moments(own.means[span].clone(), own.products[span].clone())
        given = {"scales": scales[span], "precision": precision, "pull": pull[span]}
        losses, logdets = self.own.posterior(here, other, **given, multipliers=multipliers)
        own.means.copy_(gather(here.means, self.side))
        own.products.copy_(gather(here.products, self.side))
        return gather(losses, self.side), gather(logdets, self.side)

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
        """Do what `GaussianRows.draw` does, for all rows, with all their noise."""
        span, gather = self.part.spans[self.side], self.part.gather
        here = Moments(own.means[span].clone(), own.products[span].clone())
        given = {"scales": scales[span], "precision": precision, "pull": pull[span]}
        losses = self.own.draw(here, other, **given, noise=noise[span], multipliers=multipliers)
        own.means.copy_(gather(here.means, self.side))
        own.repack()
        return gather(losses, self.side)
