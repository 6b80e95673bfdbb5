r"""How noisy rows and columns are: relative precisions around a common one.

An entry has noise of precision :math:`\tau w_k \alpha_i \beta_j`. A priori :math:`\alpha_i` and
:math:`\beta_j` are Gamma(:math:`\nu/2, \nu/2`), of mean one, as if each had been seen to be
ordinary :math:`\nu` times; :math:`\tau` is Gamma(1, 1) for values of variance one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.completion.bayes.gamma import digamma, gammaln
from lowrank_opt.errors import OptionError

Floats = NDArray[np.floating]

_SHAPE, _RATE = 1.0, 1.0


@dataclass(frozen=True, eq=False)
class Gammas:
    """Independent Gamma distributions of given shapes and rates.

    Parameters
    ----------
    shape, rate : array
    prior_shape, prior_rate : float

    Examples
    --------
    >>> Gammas(np.array([3.0]), np.array([2.0]), 3.0, 2.0).divergence()
    0.0
    """

    shape: Floats
    rate: Floats
    prior_shape: float
    prior_rate: float

    @property
    def mean(self) -> Floats:
        """Expected values."""
        return self.shape / self.rate

    def log_mean(self) -> Floats:
        """Return the expected logarithms."""
        return digamma(self.shape) - np.log(self.rate)

    def divergence(self) -> float:
        """Return the sum of Kullback-Leibler divergences from the prior."""
        a, b, a0, b0 = self.shape, self.rate, self.prior_shape, self.prior_rate
        terms = (a - a0) * digamma(a) - gammaln(a) + math.lgamma(a0)
        return float(np.sum(terms + a0 * (np.log(b) - math.log(b0)) + a * (b0 - b) / b))


def check_noise_strength(strength: float) -> None:
    """Raise OptionError unless it is positive, or infinite."""
    if not strength > 0:
        raise OptionError(f"noise_strength must be positive, or math.inf; got {strength!r}")


def common(count: int, loss: float) -> Gammas:
    r"""Return the posterior of the common precision :math:`\tau`.

    Parameters
    ----------
    count : int
        Number of entries.
    loss : float
        Sum of squared residuals, weighted by everything but the common precision.
    """
    shape, rate = np.array([_SHAPE + count / 2]), np.array([_RATE + loss / 2])
    return Gammas(shape, rate, _SHAPE, _RATE)


def relative(counts: NDArray[np.integer], losses: Floats, strength: float) -> Gammas:
    r"""Return the posterior of the relative precisions of rows (or columns).

    Parameters
    ----------
    counts : array, shape (m,)
    losses : array, shape (m,)
        Sums of squared residuals, weighted by everything but the precisions sought.
    strength : float
        :math:`\nu`; infinite for precisions of one.
    """
    if math.isinf(strength):
        ones = np.ones(len(counts))
        return Gammas(ones, ones, 1.0, 1.0)
    half = strength / 2
    return Gammas(half + counts / 2, half + losses / 2, half, half)


def expected_log_precision(counts: NDArray[np.integer], part: Gammas, strength: float) -> float:
    """Return the sum over the entries of rows (or columns) of their expected log precisions."""
    return 0.0 if math.isinf(strength) else float(counts @ part.log_mean())
