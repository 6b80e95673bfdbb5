"""Rank-one terms in pairs: sums that vanish exactly where two terms cancel.

The last term of an odd number has no partner. Its left vector is capped at norm one instead of
normalised, so that the term can vanish; normalised, one term would be the sphere of its norm.
"""

import torch
from torch import Tensor

from lowrank_opt.linalg import lp_norm, normalize_columns, working_dtype
from lowrank_opt.operator import LowRankOperator


def paired(u: Tensor, v: Tensor, weights: Tensor) -> LowRankOperator:
    r"""Write :math:`\sum_i w_i u_i v_i^T`, w equal in pairs, with sums and differences of pairs.

    :math:`u_1 v_1^T + u_2 v_2^T = \frac12 (u_1 + u_2)(v_1 + v_2)^T
    + \frac12 (u_1 - u_2)(v_1 - v_2)^T`: exactly zero for u_2 = -u_1, v_2 = v_1.

    Examples
    --------
    >>> u, v = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 2.0]])
    >>> paired(u, v, torch.ones(2)).to_dense()
    tensor([[0.]])
    """
    mixing = torch.tensor(_mixing(len(weights)), dtype=u.dtype, device=u.device)
    # Sums of two numbers: exact zeros stay, in any order, and TF32 leaves float64 alone.
    halves = weights * mixing.abs().sum(0).reciprocal()
    return LowRankOperator(u @ mixing, halves, v @ mixing)


def _mixing(r: int) -> list[list[float]]:
    """Return the r x r matrix that takes columns to sums of pairs, differences, and a last one."""
    mixing = [[0.0] * r for _ in range(r)]
    for i in range(r // 2):
        first, second = mixing[2 * i], mixing[2 * i + 1]
        first[i] = first[r // 2 + i] = second[i] = 1.0
        second[r // 2 + i] = -1.0
    if r % 2:
        mixing[-1][-1] = 1.0
    return mixing


def units_but_last(x: Tensor) -> Tensor:
    """Normalise the paired columns; divide an unpaired last one by max(1, norm), in float64."""
    h, dtype = x.shape[1] // 2 * 2, working_dtype(x)
    units = normalize_columns(x[:, :h], dtype=dtype)
    if h == x.shape[1]:
        return units
    last = x[:, h:].to(dtype)
    long = lp_norm(last.detach().mT, 2) > 1
    capped = torch.where(long, normalize_columns(last), torch.where(long, 0.0, last))
    return torch.cat((units, capped), dim=1)


def cancelling(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns in which each pair cancels, and the left of one without a partner is zero."""
    h, u, v = u.shape[1] // 2 * 2, u.clone(), v.clone()
    u[:, 1:h:2], v[:, 1:h:2] = -u[:, 0:h:2], v[:, 0:h:2]
    u[:, h:] = 0.0
    return u, v
