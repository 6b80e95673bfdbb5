"""Rows and columns solved again when ratings arrive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.after.fold_in import (
    FactorPrior,
    balanced_factors,
    fold_in_rows,
    put_rows,
    transposed,
)
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class RowPrior:
    """What is expected of rows before their entries.

    Parameters
    ----------
    common : FactorPrior
        Of rows of which nothing else is known.
    anchors : Tensor, shape (d, K), float64
        Means of the first d rows, which have side information.
    """

    common: FactorPrior
    anchors: Tensor

    @classmethod
    def of(
        cls, result: CompletionResult, observations: Observations, described: int, *, biased: bool
    ) -> RowPrior:
        """Learn it from a fit and what it was fitted to.

        Described rows without entries stand where their side information puts them: they start
        from there when entries come.
        """
        common = FactorPrior.empirical(result, observations, biased=biased)
        left, _ = balanced_factors(result.operator)
        rows = torch.cat((left, result.bias.rows.double().unsqueeze(1)), 1) if biased else left
        empty = (observations.row_counts == 0).unsqueeze(1)
        return cls(common, torch.where(empty, rows, common.mean)[:described])

    def at(self, positions: Tensor) -> FactorPrior:
        """Return the prior of some rows."""
        d = len(self.anchors)
        means = self.common.mean.expand(len(positions), -1)
        if d > 0:
            inside = (positions < d).unsqueeze(1)
            means = torch.where(inside, self.anchors[positions.clamp_max(d - 1)], means)
        return replace(self.common, mean=means)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what files hold of it."""
        exponent = torch.tensor(self.common.exponent, dtype=torch.float64)
        common = {"precision": self.common.precision, "mean": self.common.mean}
        return {**common, "exponent": exponent, "anchors": self.anchors}

    @classmethod
    def from_tensors(cls, x: dict[str, Tensor]) -> RowPrior:
        """Return what `to_tensors` came from."""
        common = FactorPrior(x["precision"], x["mean"], float(x["exponent"]))
        return cls(common, x.get("anchors", common.mean.new_zeros(0, len(common.mean))))


@dataclass(frozen=True, eq=False)
class Updater:
    """Solves rows and columns in closed form, with priors learned from the fit.

    Parameters
    ----------
    row_prior, col_prior : RowPrior
    """

    row_prior: RowPrior
    col_prior: RowPrior

    @classmethod
    def of(
        cls,
        result: CompletionResult,
        observations: Observations,
        *,
        biased: bool,
        described: tuple[int, int] = (0, 0),
    ) -> Updater:
        """Learn the priors from a fit and what it was fitted to."""
        (rows, cols), turned = described, flipped(observations)
        return cls(
            RowPrior.of(result, observations, rows, biased=biased),
            RowPrior.of(transposed(result), turned, cols, biased=biased),
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
    result: CompletionResult, observations: Observations, touched: Tensor, prior: RowPrior
) -> CompletionResult:
    touched = touched.to(observations.device)
    place = torch.full((observations.shape[0],), -1, device=touched.device)
    place = place.index_put((touched,), torch.arange(len(touched), device=touched.device))
    here = place[observations.rows] >= 0
    part = observations.take(here)
    shape = (len(touched), observations.shape[1])
    entries = Observations(place[part.rows], part.cols, part.values, shape, part.weights)
    return put_rows(result, fold_in_rows(result, entries, prior.at(touched)), touched)


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
