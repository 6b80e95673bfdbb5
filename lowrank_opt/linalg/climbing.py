"""A local maximum of a smooth function, to as many digits as its values have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def climb(value: Callable[[Tensor], Tensor], start: Tensor, *, steps: int = 100) -> Tensor:
    """Return a point near a local maximum, by L-BFGS; in any mode of autograd.

    Parameters
    ----------
    value : callable
        From a tensor like `start` to a scalar, differentiable; of any size.
    start : Tensor
        In float64.
    steps : int

    Returns
    -------
    Tensor
        `start` itself if nothing is gained.

    Examples
    --------
    >>> climb(lambda x: -(x - 3).square().sum(), torch.zeros(1, dtype=torch.float64))
    tensor([3.], dtype=torch.float64)
    """
    from scipy.optimize import minimize

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.from_numpy(values).to(start.device).view_as(start).clone().requires_grad_()
            found = -value(x) / size
            (slope,) = torch.autograd.grad(found, x)
        return float(found.detach()), slope.flatten().cpu().numpy()

    begin, size = start.detach().cpu().flatten().numpy(), 1.0
    first, slope = loss(begin)
    # The steps that end a climb are compared with one: a value of zero says nothing of its size.
    size = abs(first) or float(abs(slope).max()) or 1.0
    options = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-10}
    result = minimize(loss, begin, jac=True, method="L-BFGS-B", options=options)
    if not result.fun * size < first:
        return start
    return torch.from_numpy(result.x).view_as(start).to(start.device)
