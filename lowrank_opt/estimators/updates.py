"""Rows and columns solved again when ratings arrive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.after.fold_in import (
    FactorPrior,
    balanced_factors,
    fold_in_rows,
    put_rows,
    transposed,
)
from lowrank_opt.estimators.data.side_maps import Lines
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
        Means of rows that have side information.
    places : Tensor, shape (d,), int64
        Their positions, ascending.
    precision : Tensor, shape (K, K), float64
        Of these rows around their means.
    """

    common: FactorPrior
    anchors: Tensor
    places: Tensor
    precision: Tensor

    @classmethod
    def of(
        cls,
        result: CompletionResult,
        observations: Observations,
        lines: Tensor | None,
        *,
        biased: bool,
    ) -> RowPrior:
        """Learn it from a fit and what it was fitted to.

        Parameters
        ----------
        result, observations
        lines : Tensor, shape (m, r + 1), or None
            What side information says of each row, its bias last; None if there is none.
        biased : bool
        """
        common = FactorPrior.empirical(result, observations, biased=biased)
        K = len(common.mean)
        if lines is None:
            none = torch.empty(0, dtype=torch.int64, device=observations.device)
            return cls(common, common.mean.new_zeros(0, K), none, common.precision)
        means = lines[:, :K].to(common.mean)
        around = FactorPrior.empirical(result, observations, biased=biased, means=means)
        places = torch.arange(len(means), device=observations.device)
        return cls(common, means, places, around.precision)

    def joined(self, places: NDArray[np.int64], lines: Tensor) -> RowPrior:
        """Return this with the means of more rows, as `lines_of` has them, the bias last."""
        K = self.anchors.shape[1]
        where = torch.cat((self.places, torch.from_numpy(places).to(self.places)))
        anchors = torch.cat((self.anchors, lines[:, :K].to(self.anchors)))
        order = where.argsort()
        return replace(self, anchors=anchors[order], places=where[order])

    def of_each(self, positions: Tensor) -> list[tuple[Tensor, FactorPrior]]:
        """Return positions and their prior: of rows with side information, and of the others."""
        there = torch.isin(positions, self.places)
        described, others = positions[there], positions[~there]
        anchors = self.anchors[torch.searchsorted(self.places, described)]
        own = replace(self.common, mean=anchors, precision=self.precision)
        both = ((described, own), (others, self.common))
        return [(part, prior) for part, prior in both if len(part) > 0]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what files hold of it."""
        exponent = torch.tensor(self.common.exponent, dtype=torch.float64)
        common = {"precision": self.common.precision, "mean": self.common.mean}
        described = {"anchors": self.anchors, "places": self.places, "around": self.precision}
        return {**common, "exponent": exponent, **described}

    @classmethod
    def from_tensors(cls, x: dict[str, Tensor]) -> RowPrior:
        """Return what `to_tensors` came from."""
        common = FactorPrior(x["precision"], x["mean"], float(x["exponent"]))
        anchors = x.get("anchors", common.mean.new_zeros(0, len(common.mean)))
        # Earlier releases had those of the first rows.
        places = x.get("places", torch.arange(len(anchors)))
        return cls(common, anchors, places, x.get("around", common.precision))


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
        lines: Lines = (None, None),
    ) -> Updater:
        """Learn the priors from a fit, what it was fitted to, and what features say of it."""
        (rows, cols), turned = lines, flipped(observations)
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
    for part, own in prior.of_each(touched.to(observations.device)):
        result = put_rows(result, _solved(result, observations, part, own), part)
    return result


def _solved(
    result: CompletionResult, observations: Observations, touched: Tensor, prior: FactorPrior
) -> CompletionResult:
    """Return rows, at some positions of the entries, solved from these."""
    place = torch.full((observations.shape[0],), -1, device=touched.device)
    place = place.index_put((touched,), torch.arange(len(touched), device=touched.device))
    here = place[observations.rows] >= 0
    if not bool(here.any()):
        return _expected(result, prior.mean.expand(len(touched), -1))
    part = observations.take(here)
    shape = (len(touched), observations.shape[1])
    entries = Observations(place[part.rows], part.cols, part.values, shape, part.weights)
    return fold_in_rows(result, entries, prior)


def _expected(result: CompletionResult, means: Tensor) -> CompletionResult:
    """Return rows that are what is expected of them, shape (k, n)."""
    _, right = balanced_factors(result.operator)
    rank = right.shape[1]
    left, bias = means[:, :rank], means[:, rank:].sum(1)
    operator = LowRankOperator(left, left.new_ones(rank), right)
    rows = AdditiveBias(result.bias.mean, bias, result.bias.cols)
    return CompletionResult(operator, rows, result.status, result.history)


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
