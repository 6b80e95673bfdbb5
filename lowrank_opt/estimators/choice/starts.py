"""Where fits start: the spread of the values, random factors, the largest sensible penalty."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
from lowrank_opt.completion.model.bias import fit_additive_bias, no_bias, weighted_mean
from lowrank_opt.completion.model.randomness import normal
from lowrank_opt.estimators.choice.biases import with_zero_matrix
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

Bias: TypeAlias = Literal["additive"] | None

# The penalty of a row with n entries grows with its root: the weighted trace norm.
EXPONENT = 0.5

_SIZE_OF_START = 0.1


def spread(observations: Observations, bias: Bias) -> float:
    """Return the root mean square of the values, around their mean if there is a bias; or one."""
    return spread_or_zero(observations, bias) or 1.0


def spread_or_zero(observations: Observations, bias: Bias) -> float:
    """Return the root mean square of the values, around their mean if there is a bias."""
    values = observations.values.double()
    if bias is not None:
        # Rounding of the mean is no spread.
        values = values - (values[0] if bool((values == values[0]).all()) else values.mean())
    peak = float(values.abs().max())
    return peak * float((values / peak).square().mean().sqrt()) if peak > 0 else 0.0


def constant(observations: Observations) -> CompletionResult:
    """Return the result that predicts the mean of the values."""
    bias = replace(no_bias(observations), mean=weighted_mean(observations))
    return with_zero_matrix(bias, observations, CompletionStatus.EXACT_FIT)


def random_start(
    observations: Observations, rank: int, generator: torch.Generator
) -> CompletionResult:
    """Return small random factors in the unit of the values, and no biases."""
    m, n = observations.shape
    size = _SIZE_OF_START * math.sqrt(spread(observations, "additive") / rank)
    left, right = (
        size * normal((k, rank), generator, like=observations.values, dtype=torch.float64)
        for k in (m, n)
    )
    operator = LowRankOperator(left, left.new_ones(rank), right)
    return CompletionResult(operator, no_bias(observations), CompletionStatus.STALLED, History())


def moved(result: CompletionResult, rows: Tensor, cols: Tensor) -> CompletionResult:
    """Return a result with other rows and columns: those at these positions, zero for -1."""

    def taken(x: Tensor, at: Tensor) -> Tensor:
        at = at.to(x.device)
        kept = x[at.clamp_min(0)]
        return kept.where((at >= 0).reshape(-1, *[1] * (x.ndim - 1)), 0)

    left, scale, right = result.operator
    bias = result.bias
    return CompletionResult(
        LowRankOperator(taken(left, rows), scale, taken(right, cols)),
        AdditiveBias(bias.mean, taken(bias.rows, rows), taken(bias.cols, cols)),
        result.status,
        result.history,
    )


def largest_penalty(observations: Observations, bias: Bias, exponent: float = EXPONENT) -> float:
    r"""Return the penalty above which only biases are left.

    The largest singular value of the weighted residuals of the biases, row i divided by
    :math:`n_i^{\text{exponent} / 2}` and columns likewise; one if it is zero.
    """
    exact = observations.to(dtype=torch.float64)
    residuals = _weighted_residuals(exact, bias, exponent)
    if not bool(residuals.any()):
        return 1.0
    if min(exact.shape) == 1:
        return float(residuals.norm())
    return _top_singular_value(exact, residuals)


def _weighted_residuals(exact: Observations, bias: Bias, exponent: float) -> Tensor:
    start = fit_additive_bias(exact, penalty=1.0) if bias else no_bias(exact)
    residuals = exact.values - start.predict(exact.rows, exact.cols)
    if exact.weights is not None:
        residuals = residuals * exact.weights
    for index, counts in ((exact.rows, exact.row_counts), (exact.cols, exact.col_counts)):
        residuals = residuals * counts[index].double().pow(-exponent / 2)
    return residuals


def _top_singular_value(exact: Observations, values: Tensor) -> float:
    import scipy.sparse
    from scipy.sparse.linalg import svds

    # ARPACK squares: bring the largest entry to one.
    peak = float(values.abs().max())
    i, j, data = (x.cpu().numpy() for x in (exact.rows, exact.cols, values / peak))
    matrix = scipy.sparse.coo_array((data, (i, j)), shape=exact.shape).tocsr()
    v0 = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return peak * float(svds(matrix, 1, return_singular_vectors=False, tol=1e-2, v0=v0)[0])
