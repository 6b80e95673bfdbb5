"""Learned bounds on singular values: free numbers on the sphere of a norm."""

import torch
from torch import Tensor

from lowrank_opt.linalg import scale_to_unit_peak, working_dtype
from lowrank_opt.sets import NormBall


def on_sphere(free: Tensor, ball: NormBall) -> Tensor:
    """Return ``radius * z / norm(z)`` for free numbers z, in the working dtype; 0 for z = 0.

    Parameters
    ----------
    free : Tensor, shape (r,)
        Of any sign, which is kept.
    ball : NormBall

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> on_sphere(torch.tensor([3e-20, 4e-20]), SchattenBall(2, 5.0, 2))
    tensor([3.0000, 4.0000], dtype=torch.float64)
    """
    z = scale_to_unit_peak(free)[0].to(working_dtype(free))
    norm = ball.gauge(z)
    return torch.where(norm > 0, ball.radius * z / torch.where(norm > 0, norm, 1.0), 0.0)
