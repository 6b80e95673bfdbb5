"""What a matrix is of whose lines each process has some: its singular values, its entries."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.kernels.cut_entries import at_entries
from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Side
from lowrank_opt.observations.parts import is_cut, over_lines
from lowrank_opt.operator import LowRankOperator


def condensed(operator: LowRankOperator, observations: Observations) -> LowRankOperator:
    """Return r rows, instead of all of them, that have the same singular values; so of columns.

    By the Gram matrix of the factor, in float64: values below about 1e-8 of the largest are
    rounding. The operator itself, where rows are not cut.

    Parameters
    ----------
    operator : LowRankOperator, shape (k, n)
        The rows of this process.
    observations : Observations, shape (k, n)

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(4, 1), torch.ones(1), torch.ones(2, 1))
    >>> condensed(op, Observations([0], [0], [1.0], (4, 2))) is op
    True
    """
    if not is_cut(observations):
        return operator
    left, scale, right = (x.double() for x in operator)
    right = _few(right, observations, 1) if is_cut(observations, 1) else right
    return LowRankOperator(_few(left, observations, 0), scale, right)


def _few(x: Tensor, observations: Observations, side: Side) -> Tensor:
    """Return a square matrix with the Gram matrix of the lines of all processes."""
    squares, Q = torch.linalg.eigh(over_lines(observations, x.mT @ x, side))
    return squares.clamp_min(0).sqrt().unsqueeze(1) * Q.mT


def predict_entries(result: CompletionResult, entries: Observations) -> Tensor:
    """Return predictions of the entries of this process, also where columns are cut.

    To be called in all processes.

    Parameters
    ----------
    result : CompletionResult
        Of entries that were cut as these are.
    entries : Observations

    Returns
    -------
    Tensor, shape (nnz,)
    """
    if not is_cut(entries, 1):
        return result.predict(entries.rows, entries.cols)
    (left, scale, right), bias = result.operator, result.bias
    # The biases as two more columns: one fetch.
    left = torch.cat((left * scale, bias.rows.unsqueeze(1), left.new_ones(len(left), 1)), dim=1)
    cols = bias.cols.unsqueeze(1)
    right = torch.cat((right, torch.ones_like(cols), cols), dim=1)
    scores = at_entries(LowRankOperator(left, left.new_ones(left.shape[1]), right), entries)
    return result.link.mean(scores + bias.mean)
