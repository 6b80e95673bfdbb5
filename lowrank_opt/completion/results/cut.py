"""What a matrix is of whose rows each process has some: its singular values, in every process."""

from __future__ import annotations

import torch

from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut, over_lines
from lowrank_opt.operator import LowRankOperator


def condensed(operator: LowRankOperator, observations: Observations) -> LowRankOperator:
    """Return r rows, instead of all of them, that have the same singular values.

    By the Gram matrix of the left factor, in float64: values below about 1e-8 of the largest are
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
    left = operator.left.double()
    squares, Q = torch.linalg.eigh(over_lines(observations, left.mT @ left, 0))
    return LowRankOperator(
        squares.clamp_min(0).sqrt().unsqueeze(1) * Q.mT,
        operator.scale.double(),
        operator.right.double(),
    )
