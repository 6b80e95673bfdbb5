r"""Gaussian differential privacy in numbers: from (epsilon, delta) to noise, and over rounds.

A release with Gaussian noise of standard deviation :math:`\Delta / \mu`, where Delta is the largest
distance between what two neighbouring data sets would release, is exactly as hard to see through as
N(0, 1) is to tell from N(mu, 1): mu-GDP. Releases compose exactly, by
:math:`\mu^2 = \sum_t \mu_t^2`, also when later ones depend on earlier ones. In the terms of zCDP,
:math:`\rho = \mu^2 / 2`; converting mu to (epsilon, delta) directly loses nothing.

References
----------
Balle and Wang, Improving the Gaussian mechanism (arXiv 1805.06530), theorem 8; Dong, Roth and Su,
Gaussian differential privacy (arXiv 1905.02383), corollaries 2.13 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from lowrank_opt.errors import OptionError

# A relative margin, far above the rounding of the formulas and far below what matters.
_MARGIN = 1e-9


def gaussian_delta(epsilon: float, mu: float) -> float:
    r"""Return the smallest delta for which mu-GDP is (epsilon, delta)-DP.

    :math:`\delta = \Phi(\mu/2 - \epsilon/\mu) - e^\epsilon \Phi(-\mu/2 - \epsilon/\mu)`.

    Parameters
    ----------
    epsilon : float
        Nonnegative.
    mu : float
        Positive.

    Returns
    -------
    float
        In float64, to a relative error of about 1e-15 (1 + epsilon / mu^2); no term overflows.

    Examples
    --------
    >>> round(gaussian_delta(1.0, mu=1.0), 6)
    0.126937
    """
    if not (epsilon >= 0 and mu > 0):
        raise OptionError(f"epsilon must be >= 0 and mu > 0; got {epsilon!r} and {mu!r}")
    if epsilon == 0:
        return math.erf(mu / math.sqrt(8))
    # e^epsilon phi(b) = phi(a): both terms are the density at a times ratios of Mills.
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    if a > 0:
        return density * (_mills(a) - _mills(b)) if density > 0 else 0.0
    return 0.5 * math.erfc(a / math.sqrt(2)) - density * _mills(b)


def gaussian_mu(epsilon: float, delta: float) -> float:
    r"""Return the largest mu for which mu-GDP is (epsilon, delta)-DP; the noise is Delta / mu.

    The analytic Gaussian mechanism. Rounded down: `gaussian_delta` of it is at most delta.

    Parameters
    ----------
    epsilon : float
        Nonnegative and finite.
    delta : float
        In (0, 1); much less than one over the number of people.

    Examples
    --------
    >>> round(gaussian_mu(1.0, 1e-5), 4)
    0.2681
    """
    _check_budget(epsilon, delta)
    low, _ = _last(lambda mu: gaussian_delta(epsilon, mu) <= delta)
    return low * (1 - _MARGIN)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon for which mu-GDP is (epsilon, delta)-DP, rounded up.

    Parameters
    ----------
    mu : float
        Positive.
    delta : float
        In (0, 1).

    Examples
    --------
    >>> round(gaussian_epsilon(gaussian_mu(1.0, 1e-5), 1e-5), 4)
    1.0
    """
    _check_budget(0.0, delta)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    _, high = _last(lambda epsilon: gaussian_delta(epsilon, mu) > delta)
    return high * (1 + _MARGIN)


def composed_mu(mus: Iterable[float]) -> float:
    """Return the mu of several releases together, ``sqrt(sum of squares)``.

    Examples
    --------
    >>> composed_mu([3.0, 4.0])
    5.0
    """
    return math.hypot(*mus)


@dataclass(frozen=True)
class PrivacyBudget:
    """What all releases together may cost.

    Parameters
    ----------
    epsilon : float
        Nonnegative and finite.
    delta : float
        In (0, 1).

    Raises
    ------
    OptionError
        If a parameter is outside its domain.

    Examples
    --------
    >>> budget = PrivacyBudget(epsilon=4.0, delta=1e-5)
    >>> per_round = budget.mu_of_each(20)
    >>> round(budget.spent([per_round] * 10), 2), round(budget.spent([per_round] * 20), 2)
    (2.69, 4.0)
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _check_budget(self.epsilon, self.delta)

    @property
    def mu(self) -> float:
        """The mu of the whole budget."""
        return gaussian_mu(self.epsilon, self.delta)

    def mu_of_each(self, releases: int) -> float:
        """Return the mu of each of so many equal releases."""
        if releases < 1:
            raise OptionError(f"there must be at least one release; got {releases!r}")
        return self.mu / math.sqrt(releases)

    def spent(self, mus: Iterable[float]) -> float:
        """Return the epsilon, at this delta, of the releases that were made."""
        total = composed_mu(mus)
        return gaussian_epsilon(total, self.delta) if total > 0 else 0.0


def _mills(x: float) -> float:
    """Return the upper tail of N(0, 1) at x, divided by the density there."""
    scaled = torch.special.erfcx(torch.tensor(x / math.sqrt(2), dtype=torch.float64))
    return math.sqrt(math.pi / 2) * float(scaled)


def _last(holds: Callable[[float], bool]) -> tuple[float, float]:
    """Return the neighbouring numbers between which a condition ceases to hold."""
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _check_budget(epsilon: float, delta: float) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise OptionError(f"epsilon must be nonnegative and finite; got epsilon={epsilon!r}")
    if not 0 < delta < 1:
        raise OptionError(f"delta must be in (0, 1); got delta={delta!r}")
