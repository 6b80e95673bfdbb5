r"""Residuals as if each entry had not been fitted, without fitting again.

A row of a completed matrix is a ridge regression on the columns' factors, and a column on the
rows'. In a ridge regression the residual of an entry that is left out is the residual divided by
one minus its leverage :math:`h = w f^T (\sum_k w_k f_k f_k^T + P)^{-1} f`. Dividing by both shares
:math:`1 - h` corrects for the row that the entry pulled at and for the column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.completion.after.fold_in import FactorPrior, balanced_factors, transposed
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.observations import Observations

# Numbers of one block of rows' matrices.
_BLOCK = 1 << 22
# An entry that its row and column follow entirely says nothing about others.
_LEAST = 0.05
_LARGEST_RANK = 32


def left_out_residuals(
    result: CompletionResult | BayesianResult, observations: Observations
) -> Tensor:
    """Return the residuals of fitted entries, each about as if it had been left out.

    Parameters
    ----------
    result : CompletionResult or BayesianResult, shape (m, n)
    observations : Observations, shape (m, n)
        What it was fitted to.

    Returns
    -------
    Tensor, shape (nnz,), float64
        Values minus predictions, enlarged by the leverages in row and column. Priors are those
        that `FactorPrior.empirical` learns.

    Raises
    ------
    OptionError
        If a `BayesianResult` is of ordered levels.

    References
    ----------
    Golub, Heath and Wahba (1979), Generalized cross-validation, for one ridge regression.
    """
    point = result.to_completion() if isinstance(result, BayesianResult) else result
    i, j = observations.rows, observations.cols
    residuals = observations.values.double() - result.predict(i, j).double()
    rank = min(point.operator.rank, _LARGEST_RANK, *point.shape)
    kept = point.operator.truncate(rank) if rank < point.operator.rank else point.operator
    point = CompletionResult(kept, point.bias, point.status, point.history)
    m, n = observations.shape
    flipped = Observations(j, i, observations.values, (n, m), observations.weights)
    free = (1 - _of_rows(point, observations)) * (1 - _of_rows(transposed(point), flipped))
    return residuals / free.clamp(min=_LEAST)


def leverages(features: Tensor, observations: Observations, precision: Tensor) -> Tensor:
    """Return the leverage of each entry in the ridge regression of its row.

    Parameters
    ----------
    features : Tensor, shape (n, K), float64
        A line for each column.
    observations : Observations, shape (m, n)
    precision : Tensor, shape (K, K), float64

    Returns
    -------
    Tensor, shape (nnz,), float64
        In [0, 1), in the order of the entries.
    """
    csr, K = observations.csr, features.shape[1]
    w = observations.weights
    found = features.new_empty(len(observations))
    weights = torch.ones_like(found) if w is None else w.double()
    step = max(1, _BLOCK // (K * K))
    for first in range(0, observations.shape[0], step):
        pointers = csr.pointers[first : first + step + 1]
        lines = torch.repeat_interleave(pointers.diff())
        here = slice(int(pointers[0]), int(pointers[-1]))
        order = csr.order[here]
        f = features[csr.indices[here].long()]
        matrices = precision.expand(len(pointers) - 1, K, K).clone()
        weighted = weights[order].unsqueeze(1) * f
        for k in range(K):
            matrices[:, k].index_add_(0, lines, weighted[:, k : k + 1] * f)
        inverse = torch.linalg.inv(matrices)
        found[order] = ((inverse[lines] @ f.unsqueeze(2)).squeeze(2) * weighted).sum(1)
    return found


def _of_rows(result: CompletionResult, observations: Observations) -> Tensor:
    biased = bool(result.bias.rows.any())
    prior = FactorPrior.empirical(result, observations, biased=biased)
    right = balanced_factors(result.operator)[1]
    features = torch.cat((right, right.new_ones(len(right), int(biased))), 1)
    return leverages(features, observations, prior.precision)
