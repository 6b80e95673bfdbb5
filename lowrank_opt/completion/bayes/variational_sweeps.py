"""Independent Gaussians for rows and columns that approximate the posterior, and how well."""

from __future__ import annotations

import math
from copy import copy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.completion.bayes import noise
from lowrank_opt.completion.bayes.normal_wishart import NormalWishart
from lowrank_opt.completion.loop.checkpoint import State, own_lines, packed, unpacked
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.standardize import standardize
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.parts import PartialGaussianRows, gaussian_rows
from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import Side
from lowrank_opt.observations.parts import (
    is_cut,
    over_lines,
    total,
    whole_lines,
    whole_shape,
)
from lowrank_opt.operator import LowRankOperator

Floats = NDArray[np.floating]

# A strong prior in the first sweeps empties directions before they had a chance to fit.
_FIRST_PRECISION = 0.3
_LARGEST_EXPONENT = 600.0
# Directions that are added to a fit start smaller than its own, not to undo it.
_ADDED_SPREAD = 0.3
# In standardised units, the precision of a bias that is none.
_PINNED = 1e9
_SIDES: tuple[Side, Side] = (0, 1)
# Lines that are drawn at a time.
_LINES = 1 << 16
_CHANGING = ("sides", "precisions", "priors", "noise", "relative", "divergences", "energy")


class VariationalPosterior:
    """Standardised entries, the approximate posterior of both sides, and its free energy.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    rank : int
    noise_strength : float
    generator : torch.Generator or None
        As in `variational`.
    single : bool
        Sweep in float32 whatever the dtype of the observations.
    biased : bool
        Whether there are a mean, and biases of rows and columns. Without, the bias is kept in the
        arrays, at zero, by a precision that nothing else comes near.
    """

    def __init__(
        self,
        observations: Observations,
        rank: int,
        noise_strength: float,
        generator: torch.Generator | None,
        *,
        single: bool = False,
        biased: bool = True,
    ) -> None:
        self.dtype: torch.dtype
        self.rank: int
        self.strength: float
        self.dtype, self.rank, self.strength = observations.dtype, rank, noise_strength
        self.biased = biased
        # In the dtype of the values: float32 may hold their deviations, but not them.
        self.offset: float
        self.unit: float
        self.offset, self.unit, scaled = standardize(observations, centre=biased)
        narrow = single or observations.dtype == torch.float32
        dtype = torch.float32 if narrow else torch.float64
        self.rows: list[GaussianRows | PartialGaussianRows] = list(gaussian_rows(scaled, dtype))
        weights = self.rows[0].weights
        self.count: int = int(total(scaled, weights > 0))
        self.log_weights: float = float(total(scaled, weights[weights > 0].double().log()))
        self.observations: Observations = scaled
        self.sizes: tuple[int, int] = whole_shape(scaled)
        self.counts: list[NDArray[np.integer]] = [
            rows.positive_counts.cpu().numpy() for rows in self.rows
        ]
        where = torch.device("cpu") if generator is None else generator.device
        self.seed: int = int(torch.randint(2**62, (), generator=generator, device=where))
        self.rng: np.random.Generator = np.random.default_rng(self.seed)
        self.sides: list[Moments] = [
            # The same start in both dtypes: ratings as integers and as float32 are the same ones.
            _certain(_drawn(self.rng, size, rank, held), weights)
            for size, held in zip(*whole_lines(observations), strict=True)
        ]
        size = self.unknowns
        self.precisions: list[Floats] = [_FIRST_PRECISION * np.eye(size) for _ in self.sides]
        self.priors: list[NormalWishart] = [NormalWishart.prior(size) for _ in self.sides]
        self.noise: noise.Gammas = noise.common(0, 0.0)
        self.relative: list[noise.Gammas] = [
            noise.relative(0 * n, 0.0 * n, noise_strength) for n in self.counts
        ]
        self.divergences: list[float]
        self.divergences, self.energy = [0.0, 0.0], math.inf

    @property
    def unknowns(self) -> int:
        """How many numbers a row has: factors and, if there is one, a bias."""
        return self.rank + int(self.biased)

    def sweep(self) -> float:
        """Update everything once; return the free energy."""
        loss = math.nan
        for side in _SIDES:
            loss = self._update(side)
        self.noise = noise.common(self.count, loss)
        self.energy: float = self._free_energy(loss)
        return self.energy

    def grown(self, rank: int) -> VariationalPosterior:
        """Return a posterior of a larger rank that goes on from this one; data are shared.

        The directions of this one keep their means and their prior; the further ones are drawn at
        random, with an uninformed prior. Covariances begin anew.
        """
        larger, kept = copy(self), np.r_[: self.rank, rank : rank + int(self.biased)]
        larger.rank = rank
        rng = np.random.default_rng([self.seed, rank])
        lines = zip(self.sides, *whole_lines(self.observations), strict=True)
        larger.sides = [
            _widened(side, _drawn(rng, size, rank - self.rank, held)) for side, size, held in lines
        ]
        larger.precisions, larger.priors = [], []
        for precision, prior in zip(self.precisions, self.priors, strict=True):
            wide, fresh = np.eye(larger.unknowns), NormalWishart.prior(larger.unknowns)
            wide[np.ix_(kept, kept)] = precision
            fresh.mean[kept] = prior.mean
            larger.precisions.append(wide)
            larger.priors.append(fresh)
        larger.relative, larger.divergences = list(self.relative), [0.0, 0.0]
        larger.energy = math.inf
        return larger

    def mean(self) -> tuple[LowRankOperator, AdditiveBias]:
        """Return the posterior mean in the unit of the values."""
        root, r = math.sqrt(self.unit), self.rank
        means = [side.means.to(self.dtype) for side in self.sides]
        left, right = (x[:, :r] * root for x in means)
        operator = LowRankOperator(left, left.new_ones(r), right)
        a, c = (x[:, -1] * self.unit for x in means)
        return operator, AdditiveBias(self.offset, a, c)

    def state(self) -> State:
        """Return what sweeps change, for a `Checkpoint`."""
        state = {name: unpacked(getattr(self, name)) for name in _CHANGING}
        if is_cut(self.observations):
            for name in ("sides", "relative"):
                rows, cols = cast("list[State]", state[name])
                state[name] = [own_lines(rows), cols]
        return state

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, dict), "as `state` returned it"
        for name in _CHANGING:
            setattr(self, name, packed(getattr(self, name), state[name]))

    def in_unit_of_loss(self, energy: float) -> float:
        """Return half the sum of squares of Gaussian noise with the given free energy."""
        exponent = 2 * energy / self.count - math.log(2 * math.pi * math.e)
        return 0.5 * self.count * self.unit * self.unit * math.exp(min(exponent, _LARGEST_EXPONENT))

    def _update(self, side: Side) -> float:
        """Update one side, its prior and its noise; return the weighted expected loss."""
        own, other, size = self.sides[side], self.sides[1 - side], self.sizes[side]
        P, precision = self.precisions[side], float(self.noise.mean[0])
        scales, multipliers, wide, pull = (
            torch.from_numpy(x).to(own.means.device)
            for x in (
                precision * self.relative[side].mean,
                self.relative[1 - side].mean,
                *self._prior(P, P @ self.priors[side].mean),
            )
        )
        losses_, logdets = self.rows[side].posterior(
            own,
            other,
            scales=scales,
            precision=wide,
            pull=pull.expand(len(own.means), -1),
            multipliers=multipliers,
        )
        losses, logs = losses_.cpu().numpy(), float(self._over(logdets.sum(), side))
        if not self.biased:
            own.means[:, -1] = 0
            logs -= size * math.log(_PINNED)
        sums, squares = (
            self._over(x, side).cpu().numpy()
            for x in (own.unknowns.sum(0, dtype=torch.float64), own.total())
        )
        sums, squares = sums[: self.unknowns], squares[: self.unknowns, : self.unknowns]
        prior = NormalWishart.posterior(sums, squares, size)
        self.priors[side], self.precisions[side] = prior, prior.precision
        self.relative[side] = noise.relative(self.counts[side], precision * losses, self.strength)
        distance = prior.expected_distance(sums, squares, size)
        constant = size * (self.unknowns + prior.expected_log_determinant())
        self.divergences[side] = (logs - constant + distance) / 2
        return self._over_numbers(float(self.relative[side].mean @ losses), side)

    def _over(self, x: Tensor, side: Side) -> Tensor:
        return over_lines(self.observations, x, side)

    def _over_numbers(self, x: float, side: Side) -> float:
        return float(self._over(torch.tensor(x, dtype=torch.float64), side))

    def _prior(self, precision: Floats, pull: Floats) -> tuple[Floats, Floats]:
        """Return precision and pull of factors and bias, the bias pinned if there is none."""
        if self.biased:
            return precision, pull
        wide = np.zeros((self.rank + 1, self.rank + 1))
        wide[:-1, :-1], wide[-1, -1] = precision, _PINNED
        return wide, np.append(pull, 0.0)

    def _free_energy(self, loss: float) -> float:
        log_precision = self.count * float(self.noise.log_mean()[0]) + self.log_weights
        parts = list(zip(self.counts, self.relative, _SIDES, strict=True))
        for counts, part, side in parts:
            known = noise.expected_log_precision(counts, part, self.strength)
            log_precision += self._over_numbers(known, side)
        misfit = float(self.noise.mean[0]) * loss + self.count * math.log(2 * math.pi)
        divergences = [part.divergence() for part in (*self.priors, self.noise)]
        divergences += [self._over_numbers(part.divergence(), side) for _, part, side in parts]
        return (misfit - log_precision) / 2 + sum(self.divergences) + sum(divergences)


def _drawn(rng: np.random.Generator, size: int, width: int, held: slice) -> Floats:
    """Return some lines of standard normal numbers, drawn for all lines, a block at a time."""
    found = [np.empty((0, width), np.float32)]
    for first in range(0, size, _LINES):
        block = rng.standard_normal((min(_LINES, size - first), width), np.float32)
        found.append(block[max(held.start - first, 0) : max(held.stop - first, 0)])
    return np.concatenate(found)


def _widened(side: Moments, added: Floats) -> Moments:
    """Return the means of a side, without spread, with random directions before the constant."""
    means = side.means
    factors = torch.cat((means[:, :-2], _ADDED_SPREAD * torch.from_numpy(added).to(means)), 1)
    return Moments.of(factors, means[:, -1])


def _certain(factors: Floats, like: Tensor) -> Moments:
    """Return moments of factors without spread, and without biases, where `like` is."""
    x = torch.from_numpy(factors).to(like)
    return Moments.of(x, x.new_zeros(len(x)))
