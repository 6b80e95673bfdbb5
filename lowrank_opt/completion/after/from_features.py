r"""Rows and columns that were never seen, from their features: a map learned from those fitted.

With the factors :math:`x_i` of a fit as they are, :math:`x_i \sim N(\mu + B^T f_i, \Sigma)` is a
regression on the features :math:`f_i`, ridge with the strength that the evidence prefers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion.after.fold_in import balanced_factors, transposed
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.side import FeatureLink
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.operator import LowRankOperator

if TYPE_CHECKING:
    from lowrank_opt.completion.solvers.traits import AnyResult
    from lowrank_opt.tables.features import Matrix

_ROUNDS = 30
# Gamma(1, 1) on the strength, as `Gibbs` has it.
_SHAPE, _RATE = 1.0, 1.0
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """From features to lines of numbers, ``mean + features @ coefficients``.

    Parameters
    ----------
    mean : Tensor, shape (K,), float64
    coefficients : Tensor, shape (f, K), float64
    strength : float
        Of the ridge, for features scaled so that the mean squared norm of a row is one.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> found = FeatureMap.of(1 + 2 * x, x.numpy())
    >>> found.at(np.array([[10.0]])).round(decimals=2)
    tensor([[21.]], dtype=torch.float64)
    """

    mean: Tensor
    coefficients: Tensor
    strength: float

    @classmethod
    def of(cls, lines: Tensor, features: Matrix) -> FeatureMap:
        r"""Regress lines on their features, with the strength at a fixed point of its update.

        The update is that of mean-field variational Bayes with the prior of `Gibbs`, each of the K
        numbers with a variance of its own: :math:`\tau = (1 + p K / 2) / (1 + E / 2)`, E the
        expected energy of the p coefficients.

        Parameters
        ----------
        lines : Tensor, shape (m, K)
        features : array or sparse matrix, shape (m, f)

        Raises
        ------
        ObservationError
            If the features are all zero.

        References
        ----------
        The link matrix of Simm et al. (2017), Macau, equation 5; its strength by Bishop (2006),
        Pattern recognition and machine learning, section 10.3.
        """
        link = FeatureLink.of(cast("Any", features))
        Q, S = (torch.from_numpy(np.asarray(x, np.float64)) for x in (link.basis, link.spread))
        x, m, s = lines.detach().cpu().double(), len(lines), S.unsqueeze(1)
        centre = x.mean(0)
        # All that is needed of the lines, in the basis of the features.
        G, squares = Q.mT @ (x - centre), (x - centre).square().sum(0)
        floor = 1e-12 * float(x.var(0).mean()) + _TINY
        # S Q^T (I - 1 1^T / m) Q S is a diagonal matrix less a square: the mean is not shrunk.
        u = s * Q.sum(0).unsqueeze(1) / m**0.5
        strength, c = 1.0, torch.zeros_like(G)
        for _ in range(_ROUNDS):
            d = strength + s.square()
            gap = 1 - float((u.square() / d).sum())
            c = s * G / d
            c = c + (u / d) * (u * c).sum(0) / gap
            part = s * c
            rest = squares - 2 * (part * G).sum(0) + part.square().sum(0) - (u * c).sum(0).square()
            energy = float((c.square() / (rest / m).clamp_min(floor)).sum())
            energy += x.shape[1] * float((1 / d).sum() + (u / d).square().sum() / gap)
            strength = (_SHAPE + c.numel() / 2) / (_RATE + energy / 2)
        shift = -(u * c).sum(0) / m**0.5
        total = float(np.sum(np.square(_values(features))))
        product = cast("Any", features).T @ (Q @ (c / s)).numpy()
        return cls(centre + shift, torch.from_numpy(np.asarray(product)) * (m / total), strength)

    def at(self, features: Matrix) -> Tensor:
        """Return lines from features, shape (k, K)."""
        product = cast("Any", features) @ self.coefficients.numpy()
        return self.mean + torch.from_numpy(np.asarray(product))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what files hold of it."""
        strength = torch.tensor(self.strength, dtype=torch.float64)
        return {"mean": self.mean, "coefficients": self.coefficients, "strength": strength}

    @classmethod
    def from_tensors(cls, x: dict[str, Tensor]) -> FeatureMap:
        """Return what `to_tensors` came from."""
        return cls(x["mean"], x["coefficients"], float(x["strength"]))


def lines_of(result: AnyResult, side: int = 0) -> Tensor:
    """Return what a result knows of each row: factors and biases, of all draws side by side.

    Parameters
    ----------
    result : CompletionResult or BayesianResult, shape (m, n)
    side : int
        One for columns instead of rows.

    Returns
    -------
    Tensor, shape (m, K) or (n, K), float64
        K is the rank and one for the bias, as often as there are draws.
    """
    result = _turned(result) if side else result
    if isinstance(result, BayesianResult):
        parts = torch.cat((result.row_factors, result.row_bias.unsqueeze(2)), 2)
        return parts.permute(1, 0, 2).reshape(parts.shape[1], -1).double()
    left, _ = balanced_factors(result.operator)
    return torch.cat((left, result.bias.rows.double().unsqueeze(1)), 1)


def biases_in(lines: Tensor, result: AnyResult) -> Tensor:
    """Return the biases in lines of a result, shape (k,): means over its draws.

    Zero of ordered levels, whose biases are on the scale of their thresholds.
    """
    if isinstance(result, BayesianResult) and result.levels is not None:
        return lines.new_zeros(len(lines))
    draws = len(result) if isinstance(result, BayesianResult) else 1
    return lines.reshape(len(lines), draws, lines.shape[1] // draws)[..., -1].mean(1)


def with_lines(result: AnyResult, lines: Tensor, side: int = 0) -> AnyResult:
    """Return a result with rows below its own, of lines as `lines_of` has them.

    Parameters
    ----------
    result : CompletionResult or BayesianResult, shape (m, n)
    lines : Tensor, shape (k, K)
    side : int
        One for columns instead of rows.
    """
    if side:
        return _turned(with_lines(_turned(result), lines))
    if isinstance(result, BayesianResult):
        return _with_draws(result, lines)
    left, right = balanced_factors(result.operator)
    rank, dtype = left.shape[1], result.operator.dtype
    given = lines.to(left)
    operator = LowRankOperator(torch.cat((left, given[:, :rank])), left.new_ones(rank), right)
    biases = torch.cat((result.bias.rows, given[:, rank].to(result.bias.rows)))
    return replace(
        result,
        operator=operator.to(dtype=dtype),
        bias=AdditiveBias(result.bias.mean, biases, result.bias.cols),
        problem=None,
        row_ids=None,
        col_ids=None,
    )


def _turned(result: AnyResult) -> AnyResult:
    """Return the result of the transpose."""
    if isinstance(result, CompletionResult):
        return transposed(result)
    return replace(
        result,
        row_factors=result.col_factors,
        col_factors=result.row_factors,
        row_bias=result.col_bias,
        col_bias=result.row_bias,
        row_precision=result.col_precision,
        col_precision=result.row_precision,
    )


def _with_draws(result: BayesianResult, lines: Tensor) -> BayesianResult:
    S, _, r = result.row_factors.shape
    given = lines.to(result.row_factors).reshape(len(lines), S, r + 1).permute(1, 0, 2)
    precision = result.row_precision
    if precision is not None:
        precision = torch.cat((precision, precision.new_ones(S, len(lines))), 1)
    return replace(
        result,
        row_factors=torch.cat((result.row_factors, given[..., :r]), 1),
        row_bias=torch.cat((result.row_bias, given[..., r].to(result.row_bias)), 1),
        row_precision=precision,
    )


def _values(features: Matrix) -> np.ndarray:
    return features if isinstance(features, np.ndarray) else cast("Any", features).tocsr().data
