"""The prior that the factors of one side come from: its posterior, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank_opt.completion.bayes.gamma import digamma, multigammaln

Floats = NDArray[np.floating]

# Mean zero with weight 2, scale matrix identity (Salakhutdinov and Mnih, section 3.2).
_MEAN_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class NormalWishart:
    r"""The mean and the precision of vectors, jointly.

    :math:`\mu \sim N(\hat\mu, (\kappa \Lambda)^{-1})` and
    :math:`\Lambda \sim \text{Wishart}(W, \nu)`.

    Parameters
    ----------
    mean : array, shape (K,)
    weight : float
        :math:`\kappa`.
    scale : array, shape (K, K)
        W.
    degrees : float
        :math:`\nu`.
    """

    mean: Floats
    weight: float
    scale: Floats
    degrees: float

    @classmethod
    def prior(cls, size: int) -> NormalWishart:
        """Return the distribution before anything was seen."""
        return cls(np.zeros(size), _MEAN_WEIGHT, np.eye(size), float(size))

    @classmethod
    def posterior(cls, total: Floats, squares: Floats, count: int) -> NormalWishart:
        """Return the distribution given `count` vectors.

        Parameters
        ----------
        total : array, shape (K,)
            Their (expected) sum.
        squares : array, shape (K, K)
            The (expected) sum of their outer products.
        count : int

        References
        ----------
        Bishop (2006), Pattern Recognition and Machine Learning, equations 10.60 to 10.63, for one
        component.
        """
        weight = _MEAN_WEIGHT + count
        mean = total / weight
        inverse = np.eye(len(total)) + squares - weight * np.outer(mean, mean)
        return cls(mean, weight, np.linalg.inv(inverse), len(total) + float(count))

    @property
    def precision(self) -> Floats:
        """The expected precision matrix."""
        return self.degrees * self.scale

    def expected_log_determinant(self) -> float:
        """Return the expected log determinant of the precision."""
        K = len(self.mean)
        halves = (self.degrees + 1 - np.arange(1, K + 1)) / 2
        return float(digamma(halves).sum() + K * np.log(2) + np.linalg.slogdet(self.scale)[1])

    def expected_distance(self, total: Floats, squares: Floats, count: int) -> float:
        r"""Return the expected sum of :math:`(x - \mu)^T \Lambda (x - \mu)` over vectors x."""
        cross = np.outer(total, self.mean)
        scatter = squares - cross - cross.T + count * np.outer(self.mean, self.mean)
        return float(count * len(total) / self.weight + self.degrees * np.sum(self.scale * scatter))

    def divergence(self) -> float:
        """Return the Kullback-Leibler divergence from the prior."""
        K, prior = len(self.mean), NormalWishart.prior(len(self.mean))
        ratio = prior.weight / self.weight
        energy = prior.weight * self.mean @ self.precision @ self.mean
        normal = (K * (ratio - 1 - np.log(ratio)) + energy) / 2
        nu, nu0 = self.degrees, prior.degrees
        logdet = np.linalg.slogdet(self.scale)[1]
        log_norm = -nu / 2 * logdet - nu * K / 2 * np.log(2) - multigammaln(nu / 2, K)
        log_norm0 = -nu0 * K / 2 * np.log(2) - multigammaln(nu0 / 2, K)
        spread = (nu - nu0) / 2 * self.expected_log_determinant()
        trace = nu / 2 * (np.trace(self.scale) - K)
        return float(normal + log_norm - log_norm0 + spread + trace)
