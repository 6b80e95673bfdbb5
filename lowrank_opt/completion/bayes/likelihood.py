r"""How values come about from a biased low-rank matrix: noise around it, or ordered levels of that.

A sampler draws factors given numbers with Gaussian noise. Values are such numbers themselves; of
ordered levels they are latent, and drawn once in each sweep, with the thresholds between levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.completion.bayes.noise import common
from lowrank_opt.completion.loop.checkpoint import State
from lowrank_opt.completion.model.ordinal import thresholds_for
from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.kernels.ordered_levels import OrderedLevels, ThresholdLikelihood
from lowrank_opt.observations import Observations

Floats = NDArray[np.floating]


class Likelihood(ABC):
    """What a sampler asks for, once in each sweep.

    Attributes
    ----------
    thresholds : array, shape (L - 1,)
        Between levels; empty where there are none.
    """

    thresholds: Floats

    @abstractmethod
    def renew(
        self, sides: tuple[Moments, Moments], precisions: tuple[Floats, Floats]
    ) -> tuple[Tensor, Tensor, float] | None:
        """Draw what is latent.

        Parameters
        ----------
        sides : pair of Moments
            Factors and biases, without spread.
        precisions : pair of array, shapes (m,) and (n,)
            Their products are the noise precisions of the entries.

        Returns
        -------
        values by rows, values by columns, minus the log-likelihood; or None
            None if nothing is latent.
        """

    @abstractmethod
    def noise_precision(self, count: int, loss: float) -> float:
        """Draw the common noise precision given a weighted sum of squares of so many residuals."""

    @abstractmethod
    def state(self) -> State:
        """Return what draws change, for a `Checkpoint`."""

    @abstractmethod
    def resume(self, state: State) -> None:
        """Go on from a state."""


@dataclass(eq=False)
class Gaussian(Likelihood):
    """Values are the matrix and noise, whose precision is Gamma(1, 1) a priori.

    Parameters
    ----------
    rng : numpy.random.Generator
    """

    rng: np.random.Generator
    thresholds: Floats = field(default_factory=lambda: np.zeros(0))

    def renew(
        self, sides: tuple[Moments, Moments], precisions: tuple[Floats, Floats]
    ) -> tuple[Tensor, Tensor, float] | None:
        return None

    def noise_precision(self, count: int, loss: float) -> float:
        noise = common(count, loss)
        return float(self.rng.gamma(noise.shape[0]) / noise.rate[0])

    def state(self) -> State:
        return None

    def resume(self, state: State) -> None:
        pass


class OrderedProbit(Likelihood):
    r"""A value is level l where matrix and noise are between the thresholds l and l + 1.

    The first and the last threshold stay where they are, which fixes zero and unit of the latent
    numbers; those between are uniform a priori, in order. A common noise precision beside them
    moves faster than thresholds with noise of variance one. Of two levels, whose one threshold
    fixes no unit, it is one.

    Thresholds move by a Metropolis-Hastings step given the scores alone, the latent numbers
    integrated out: a normal proposal around the next iterate of Newton's method, whose moves are
    hardly ever refused where entries are many.

    Parameters
    ----------
    levels : OrderedLevels
    thresholds : array, shape (L - 1,)
        To begin with.
    rng : numpy.random.Generator

    References
    ----------
    Albert and Chib (1993), Bayesian analysis of binary and polychotomous response data; Cowles
    (1996), Accelerating Monte Carlo Markov chain convergence for cumulative-link generalized
    linear models, for thresholds without the latent numbers; Nandram and Chen (1996),
    Reparameterizing the generalized linear model to accelerate Gibbs sampler convergence, for the
    two that are fixed; Qi and Minka (2002), Hessian-based Markov chain Monte Carlo algorithms.
    """

    def __init__(self, levels: OrderedLevels, thresholds: Floats, rng: np.random.Generator) -> None:
        self.levels: OrderedLevels
        self.thresholds: Floats
        self.rng: np.random.Generator
        self.levels, self.thresholds, self.rng = levels, thresholds, rng

    def renew(
        self, sides: tuple[Moments, Moments], precisions: tuple[Floats, Floats]
    ) -> tuple[Tensor, Tensor, float] | None:
        scores = self.levels.scores(*sides, precisions)
        here = self.levels.likelihood(scores, self.thresholds)
        if len(self.thresholds) > 2:
            there = self._proposed(here)
            if bool((np.diff(there) > 0).all()):
                other = self.levels.likelihood(scores, there)
                if math.log(1 - self.rng.random()) < self._gain(here, there, other):
                    self.thresholds, here = there, other
        drawn = self.levels.draw(scores, self.thresholds, self.rng)
        return drawn, self.levels.by_columns(drawn), -here.value

    def noise_precision(self, count: int, loss: float) -> float:
        if self.levels.count == 2:
            return 1.0
        noise = common(count, loss)
        return float(self.rng.gamma(noise.shape[0]) / noise.rate[0])

    def state(self) -> State:
        return {"thresholds": self.thresholds}

    def resume(self, state: State) -> None:
        assert isinstance(state, dict), "as `state` returned it"
        self.thresholds = state["thresholds"]

    def _gain(self, here: ThresholdLikelihood, there: Floats, other: ThresholdLikelihood) -> float:
        """Return the log ratio of the two sides of detailed balance."""
        if not np.isfinite(other.hessian).all():
            return -math.inf
        back = _log_density(self.thresholds, there, other)
        return other.value + back - here.value - _log_density(there, self.thresholds, here)

    def _proposed(self, here: ThresholdLikelihood) -> Floats:
        mean, root = _newton(self.thresholds, here)
        there = self.thresholds.copy()
        there[1:-1] = mean + np.linalg.solve(root.T, self.rng.standard_normal(len(mean)))
        return there


def latent_scores(observations: Observations) -> tuple[Observations, Floats]:
    """Return the mean of a standard normal variable in each level, and the thresholds.

    Levels have the shares that they have among the entries.

    Examples
    --------
    >>> scores, thresholds = latent_scores(Observations([0, 1], [0, 0], [1.0, 9.0], (2, 1)))
    >>> scores.values.round(decimals=4).tolist(), thresholds.tolist()
    ([-0.7979, 0.7979], [0.0])
    """
    _, index, counts = torch.unique(observations.values, return_inverse=True, return_counts=True)
    shares = counts.double() / counts.sum()
    thresholds = thresholds_for(shares)
    density = torch.exp(-(thresholds**2) / 2) / math.sqrt(2 * math.pi)
    ends = torch.nn.functional.pad(density, (1, 1))
    means = (ends[:-1] - ends[1:]) / shares
    scores = observations.with_values(means[index].to(observations.dtype))
    return scores, thresholds.numpy()


def _newton(at: Floats, known: ThresholdLikelihood) -> tuple[Floats, Floats]:
    """Return where Newton's method goes from thresholds, and a root of the negative Hessian."""
    root = np.linalg.cholesky(-known.hessian[1:-1, 1:-1])
    step = np.linalg.solve(root.T, np.linalg.solve(root, known.gradient[1:-1]))
    return at[1:-1] + step, root


def _log_density(of: Floats, at: Floats, known: ThresholdLikelihood) -> float:
    """Return the log density of a proposal, up to a constant; `known` where it is made."""
    mean, root = _newton(at, known)
    deviation = root.T @ (of[1:-1] - mean)
    return float(np.log(np.diag(root)).sum() - deviation @ deviation / 2)
