"""Rows and columns solved again when ratings arrive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.after.fold_in import FactorPrior, fold_in_rows, put_rows, transposed
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Updater:
    """Solves rows and columns in closed form, with priors learned from the fit.

    Parameters
    ----------
    row_prior, col_prior : FactorPrior
    """

    row_prior: FactorPrior
    col_prior: FactorPrior

    @classmethod
    def of(cls, result: CompletionResult, observations: Observations, *, biased: bool) -> Updater:
        """Learn the priors from a fit and what it was fitted to."""
        turned = flipped(observations)
        return cls(
            FactorPrior.empirical(result, observations, biased=biased),
            FactorPrior.empirical(transposed(result), turned, biased=biased),
        )

    def rows(
        self, result: CompletionResult, observations: Observations, touched: Tensor
    ) -> CompletionResult:
        """Return the result with the rows at `touched` solved from their entries.

        Parameters
        ----------
        result : CompletionResult, shape (m, n)
        observations : Observations, shape (m', n)
            All entries; there may be more rows now.
        touched : Tensor, shape (k,)
            Ascending positions.
        """
        return _with_rows(result, observations, touched, self.row_prior)

    def cols(
        self, result: CompletionResult, observations: Observations, touched: Tensor
    ) -> CompletionResult:
        """Return the result with the columns at `touched` solved, as `rows`."""
        turned = _with_rows(transposed(result), flipped(observations), touched, self.col_prior)
        return transposed(turned)

    def alternate(
        self, result: CompletionResult, observations: Observations, rows: Tensor, cols: Tensor
    ) -> CompletionResult:
        """Return the result with some rows and columns solved in turn, a few times.

        Either may be new: those start from nothing.
        """
        result = _enlarged(result, observations.shape)
        for _ in range(_ROUNDS):
            result = self.rows(result, observations, rows)
            result = self.cols(result, observations, cols)
        return self.rows(result, observations, rows)


def _with_rows(
    result: CompletionResult, observations: Observations, touched: Tensor, prior: FactorPrior
) -> CompletionResult:
    place = torch.full((observations.shape[0],), -1).index_put(
        (touched,), torch.arange(len(touched))
    )
    here = place[observations.rows] >= 0
    part = observations.take(here)
    shape = (len(touched), observations.shape[1])
    entries = Observations(place[part.rows], part.cols, part.values, shape, part.weights)
    return put_rows(result, fold_in_rows(result, entries, prior), touched)


def _enlarged(result: CompletionResult, shape: tuple[int, int]) -> CompletionResult:
    """Return the result with zero rows and columns for those that are new."""
    left, scale, right = result.operator
    m, n = shape[0] - len(left), shape[1] - len(right)
    operator = LowRankOperator(
        torch.cat((left, left.new_zeros(m, left.shape[1]))),
        scale,
        torch.cat((right, right.new_zeros(n, right.shape[1]))),
    )
    a, c = result.bias.rows, result.bias.cols
    rows, cols = torch.cat((a, a.new_zeros(m))), torch.cat((c, c.new_zeros(n)))
    bias = AdditiveBias(result.bias.mean, rows, cols)
    return CompletionResult(operator, bias, result.status, result.history)


def flipped(observations: Observations) -> Observations:
    """Return the entries of the transpose."""
    m, n = observations.shape
    parts = (observations.cols, observations.rows, observations.values)
    return Observations(*parts, (n, m), observations.weights)
