"""Functions of the Gamma and Wishart distributions, of arrays: SciPy's take long to be loaded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def digamma(x: Floats) -> Floats:
    """Return the derivative of the logarithm of the Gamma function.

    Parameters
    ----------
    x : array
        Positive, float64.

    Returns
    -------
    array
        In the shape of `x`; to some units in the last place.

    Examples
    --------
    >>> digamma(np.array([1.0])).round(12).tolist()
    [-0.577215664902]
    """
    return torch.digamma(torch.from_numpy(x)).numpy()


def gammaln(x: Floats) -> Floats:
    """Return the logarithm of the Gamma function of positive numbers, as `digamma`.

    Examples
    --------
    >>> gammaln(np.array([1.0, 2.0, 5.0])).round(12).tolist()
    [0.0, 0.0, 3.178053830348]
    """
    return torch.lgamma(torch.from_numpy(x)).numpy()


def multigammaln(x: float, size: int) -> float:
    """Return the logarithm of the multivariate Gamma function at a number above (size - 1) / 2.

    Examples
    --------
    >>> round(multigammaln(2.0, 2), 12)  # log(pi / 2)
    0.451582705289
    """
    return float(torch.special.multigammaln(torch.tensor(x, dtype=torch.float64), size))
