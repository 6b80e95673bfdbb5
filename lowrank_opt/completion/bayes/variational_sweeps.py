"""Independent Gaussians for rows and columns that approximate the posterior, and how well."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.completion.bayes import noise
from lowrank_opt.completion.bayes.normal_wishart import NormalWishart
from lowrank_opt.completion.loop.checkpoint import State, packed, unpacked
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.completion.model.standardize import standardize
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

Floats = NDArray[np.floating]

# A strong prior in the first sweeps empties directions before they had a chance to fit.
_FIRST_PRECISION = 0.3
_LARGEST_EXPONENT = 600.0
_CHANGING = ("sides", "precisions", "priors", "noise", "relative", "divergences")


class VariationalPosterior:
    """Standardised entries, the approximate posterior of both sides, and its free energy.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    rank : int
    noise_strength : float
    generator : torch.Generator or None
        As in `variational`.
    """

    def __init__(
        self,
        observations: Observations,
        rank: int,
        noise_strength: float,
        generator: torch.Generator | None,
    ) -> None:
        self.dtype, self.rank, self.strength = observations.dtype, rank, noise_strength
        self.offset, self.unit, scaled = standardize(observations)
        dtype = np.float32 if observations.dtype == torch.float32 else np.float64
        self.rows = [GaussianRows.of(scaled, axis, dtype) for axis in (scaled.csr, scaled.csc)]
        weights = self.rows[0].weights
        self.count = int((weights > 0).sum())
        self.log_weights = float(np.log(weights[weights > 0].astype(np.float64)).sum())
        self.counts = [rows.positive_counts for rows in self.rows]
        seed = int(torch.randint(2**62, (), generator=generator))
        self.rng = np.random.default_rng(seed)
        self.sides = [
            # The same start in both dtypes: ratings as integers and as float32 are the same ones.
            Moments.of(
                self.rng.standard_normal((size, rank), np.float32).astype(dtype, copy=False),
                np.zeros(size, dtype),
            )
            for size in observations.shape
        ]
        self.precisions: list[Floats] = [_FIRST_PRECISION * np.eye(rank + 1) for _ in self.sides]
        self.priors = [NormalWishart.prior(rank + 1) for _ in self.sides]
        self.noise = noise.common(0, 0.0)
        self.relative = [noise.relative(0 * n, 0.0 * n, noise_strength) for n in self.counts]
        self.divergences = [0.0, 0.0]

    def sweep(self) -> float:
        """Update everything once; return the free energy."""
        loss = math.nan
        for side in (0, 1):
            loss = self._update(side)
        self.noise = noise.common(self.count, loss)
        return self._free_energy(loss)

    def mean(self) -> tuple[LowRankOperator, AdditiveBias]:
        """Return the posterior mean in the unit of the values."""
        root, r = math.sqrt(self.unit), self.rank
        means = [torch.from_numpy(side.means).to(self.dtype) for side in self.sides]
        left, right = (x[:, :r] * root for x in means)
        operator = LowRankOperator(left, left.new_ones(r), right)
        a, c = (x[:, -1] * self.unit for x in means)
        return operator, AdditiveBias(self.offset, a, c)

    def state(self) -> State:
        """Return what sweeps change, for a `Checkpoint`."""
        return {name: unpacked(getattr(self, name)) for name in _CHANGING}

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, dict), "as `state` returned it"
        for name in _CHANGING:
            setattr(self, name, packed(getattr(self, name), state[name]))

    def in_unit_of_loss(self, energy: float) -> float:
        """Return half the sum of squares of Gaussian noise with the given free energy."""
        exponent = 2 * energy / self.count - math.log(2 * math.pi * math.e)
        return 0.5 * self.count * self.unit**2 * math.exp(min(exponent, _LARGEST_EXPONENT))

    def _update(self, side: int) -> float:
        """Update one side, its prior and its noise; return the weighted expected loss."""
        own, other, size = self.sides[side], self.sides[1 - side], len(self.counts[side])
        P, precision = self.precisions[side], float(self.noise.mean[0])
        losses, logdets = self.rows[side].posterior(
            own,
            other,
            scales=precision * self.relative[side].mean,
            precision=P,
            pull=np.broadcast_to(P @ self.priors[side].mean, (size, self.rank + 1)),
            multipliers=self.relative[1 - side].mean,
        )
        total = own.unknowns.sum(axis=0, dtype=np.float64)
        prior = NormalWishart.posterior(total, own.total(), size)
        self.priors[side], self.precisions[side] = prior, prior.precision
        self.relative[side] = noise.relative(self.counts[side], precision * losses, self.strength)
        distance = prior.expected_distance(total, own.total(), size)
        constant = size * (self.rank + 1 + prior.expected_log_determinant())
        self.divergences[side] = (float(logdets.sum()) - constant + distance) / 2
        return float(self.relative[side].mean @ losses)

    def _free_energy(self, loss: float) -> float:
        log_precision = self.count * float(self.noise.log_mean()[0]) + self.log_weights
        log_precision += noise.expected_log_precision(self.counts, self.relative, self.strength)
        misfit = float(self.noise.mean[0]) * loss + self.count * math.log(2 * math.pi)
        parts = [*self.priors, self.noise, *self.relative]
        return (
            (misfit - log_precision) / 2
            + sum(self.divergences)
            + sum(part.divergence() for part in parts)
        )
