"""Predictions by what is known of an entry: its row, its column, both or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.model.bias import fit_additive_bias, weighted_mean
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.estimators.choice.intervals import LEVELS, Intervals
from lowrank_opt.estimators.choice.search import NOBODY, Described
from lowrank_opt.estimators.choice.starts import Bias
from lowrank_opt.observations import Observations
from lowrank_opt.tables.ids import UNKNOWN

Floats = NDArray[np.floating]
Positions = NDArray[np.int64]

# In entries.
_BIAS_PENALTY = 4.0


@dataclass(frozen=True, eq=False)
class Known:
    """What was fitted of each row and column.

    Parameters
    ----------
    row_counts, col_counts : array of int
        Numbers of entries.
    fallback : AdditiveBias
        What is predicted where the matrix says nothing.
    """

    row_counts: NDArray[np.int64]
    col_counts: NDArray[np.int64]
    fallback: AdditiveBias

    @classmethod
    def of(
        cls,
        result: AnyResult,
        observations: Observations,
        bias: Bias,
        described: Described = NOBODY,
    ) -> Known:
        """Return what a result knows that was fitted to these entries.

        The rows and columns at the positions `described` have side information, and are known
        without entries.
        """
        rows, cols = (
            x.cpu().numpy().copy() for x in (observations.row_counts, observations.col_counts)
        )
        for n, places in zip((rows, cols), described, strict=True):
            n[places] = np.maximum(n[places], 1)
        return cls(rows, cols, _fallback(result, observations, bias).to(device="cpu"))

    def joined(self, rows: Floats, cols: Floats) -> Known:
        """Return this with rows and columns behind the old ones, known by these biases alone."""
        a, c = (
            torch.cat((old, torch.from_numpy(new).to(old)))
            for old, new in ((self.fallback.rows, rows), (self.fallback.cols, cols))
        )
        return Known(
            np.append(self.row_counts, np.ones(len(rows), np.int64)),
            np.append(self.col_counts, np.ones(len(cols), np.int64)),
            AdditiveBias(self.fallback.mean, a, c),
        )

    def counts(self, side: Literal["row", "col"], positions: Positions) -> NDArray[np.int64]:
        """Return how many entries rows or columns have; none where the position is -1."""
        counts = self.row_counts if side == "row" else self.col_counts
        return np.where(positions >= 0, counts[positions], 0) if len(counts) else 0 * positions

    def predict(self, result: AnyResult, i: Positions, j: Positions) -> Floats:
        """Return predictions at positions, -1 for what is unknown."""
        bias = self.fallback
        row_known, col_known = self.counts("row", i) > 0, self.counts("col", j) > 0
        both = row_known & col_known
        mean = np.full(len(i), bias.mean, dtype=bias.rows.numpy().dtype)
        mean[row_known] += bias.rows.numpy()[i[row_known]]
        mean[col_known] += bias.cols.numpy()[j[col_known]]
        mean[both] = result.predict(i[both], j[both]).cpu().numpy()
        return mean


def calibrated(
    result: AnyResult,
    kept: Observations,
    held_out: Observations,
    *,
    mean: float,
    bias: Bias,
    clip: tuple[float, float] | None,
    described: Described = NOBODY,
) -> Intervals:
    """Return intervals from the errors of a fit on entries that it has not seen.

    Parameters
    ----------
    result : CompletionResult or BayesianResult
        Of `kept`. Errors where all is known are divided by the deviations of a posterior.
    kept, held_out : Observations
    mean : float
        What will be predicted where nothing is known: the mean of all entries.
    bias, clip, described
        As fitted.
    """
    known = Known.of(result, kept, bias, described)
    known = replace(known, fallback=replace(known.fallback, mean=mean))
    i, j, values = (
        x.cpu().numpy() for x in (held_out.rows, held_out.cols, held_out.values.double())
    )
    low_high = clip or (-np.inf, np.inf)
    errors = {
        (row, col): np.abs(_used(known, result, i, j, row, col).clip(*low_high) - values)
        for row, col in LEVELS
    }
    rows, cols = known.counts("row", i), known.counts("col", j)
    return Intervals.of(errors, rows, cols, posterior_deviations(result, i, j))


def posterior_deviations(result: AnyResult, i: Positions, j: Positions) -> Floats | None:
    """Return deviations of new values as a posterior has them, NaN at -1; None without one."""
    if isinstance(result, CompletionResult):
        return None
    there = (i >= 0) & (j >= 0)
    found = np.full(len(i), np.nan)
    spread = result.predict(i[there], j[there], return_std=True)[1]
    found[there] = spread.double().cpu().numpy()
    return found


def _used(
    known: Known, result: AnyResult, i: Positions, j: Positions, row: bool, col: bool
) -> Floats:
    unknown = np.full(len(i), UNKNOWN)
    predicted = known.predict(result, i if row else unknown, j if col else unknown)
    return predicted.astype(np.float64)


def _fallback(result: AnyResult, observations: Observations, bias: Bias) -> AdditiveBias:
    """Return what is predicted where the matrix says nothing."""
    mean = weighted_mean(observations)
    if bias is None:
        zeros = observations.values.new_zeros
        return AdditiveBias(mean, zeros(observations.shape[0]), zeros(observations.shape[1]))
    if isinstance(result, CompletionResult):
        return result.bias.to(dtype=observations.dtype)
    if result.levels is not None:
        # Biases of draws are on the scale of their thresholds.
        return fit_additive_bias(observations, penalty=_BIAS_PENALTY)
    rows, cols = (x.mean(0).to(observations.dtype) for x in (result.row_bias, result.col_bias))
    return AdditiveBias(result.mean, rows, cols)
