"""Predictions of one process's entries, also where it has some of the columns alone."""

from __future__ import annotations

from torch import Tensor

from lowrank_opt.kernels.dispatch import observed_entries
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut
from lowrank_opt.operator import LowRankOperator


def at_entries(operator: LowRankOperator, observations: Observations) -> Tensor:
    """Return what an operator is at the entries of this process, in their order.

    Where columns are cut, their lines are fetched for a block of rows at a time.

    Parameters
    ----------
    operator : LowRankOperator, shape (k, l)
        The rows of this process, and the columns that it has.
    observations : Observations, shape (k, n)

    Examples
    --------
    >>> import torch
    >>> op = LowRankOperator(torch.ones(4, 1), torch.ones(1), torch.ones(2, 1))
    >>> at_entries(op, Observations([0, 3], [0, 1], [1.0, 1.0], (4, 2)))
    tensor([1., 1.])
    """
    return observed_entries(operator, observations)


def along_columns(x: Tensor, observations: Observations) -> Tensor:
    """Return, at the entries of this process, one number for each column that it has."""
    if not is_cut(observations, 1):
        return x[observations.cols]
    ones = x.new_ones(observations.shape[0], 1)
    return at_entries(LowRankOperator(ones, ones[0], x.unsqueeze(1)), observations)
