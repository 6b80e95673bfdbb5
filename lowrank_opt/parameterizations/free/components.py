"""Sizes of the components of ``W = scaling * sum_i c_i l_i r_i^T``."""

from torch import Tensor

from lowrank_opt.linalg import lp_norm, working_dtype


def component_norms(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    r"""Return :math:`|c_i|\, \|l_i\|\, \|r_i\|`, the norms of the rank-one terms, shape (r,).

    Examples
    --------
    >>> import torch
    >>> component_norms(torch.eye(3, 2), torch.tensor([2.0, -1.0]), 3 * torch.eye(4, 2))
    tensor([6., 3.], dtype=torch.float64)
    """
    dtype = working_dtype(left)
    return values.to(dtype).abs() * lp_norm(left.to(dtype).mT, 2) * lp_norm(right.to(dtype).mT, 2)
