"""One side, rows or columns, of the Gibbs sampler: its factors and the prior they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.completion.bayes.lines import Lines
from lowrank_opt.completion.bayes.noise import relative
from lowrank_opt.completion.loop.checkpoint import State, own_lines, packed, unpacked
from lowrank_opt.completion.model.side import FeatureLink
from lowrank_opt.kernels.gaussian_rows import GaussianRows, Moments
from lowrank_opt.kernels.parts import PartialGaussianRows

Floats = NDArray[np.floating]

# Normal-Wishart prior (Salakhutdinov and Mnih, section 3.2): mean 0 with weight 2, scale identity.
_MEAN_WEIGHT = 2.0
# Gamma(1, 1) on the precision of a feature link.
_LINK_SHAPE, _LINK_RATE = 1.0, 1.0
_CHANGING = (
    "moments",
    "mean",
    "precision",
    "coefficients",
    "parts",
    "strengths",
    "relative_precision",
)
# Of these, what has a line for each row.
_OF_LINES = ("moments", "parts", "relative_precision")


class Side:
    r"""Factors :math:`x_i \sim N(\mu + g_i, \Lambda^{-1})`, g from features, their prior and noise.

    Parameters
    ----------
    rows : GaussianRows
        The entries of each row.
    moments : Moments
        The start.
    links : sequence of FeatureLink
    noise_strength : float
        As in `bayesian`.
    lines : Lines
        Where random numbers come from, and sums over all rows.
    """

    def __init__(
        self,
        rows: GaussianRows | PartialGaussianRows,
        moments: Moments,
        links: Sequence[FeatureLink],
        noise_strength: float,
        lines: Lines,
    ) -> None:
        self.rows: GaussianRows | PartialGaussianRows
        self.moments: Moments
        self.lines: Lines
        self.rows, self.moments, self.lines = rows, moments, lines
        self.x: Floats = moments.unknowns.cpu().numpy()
        K, dtype = self.x.shape[1], self.x.dtype
        self.links: list[FeatureLink] = [link.as_dtype(dtype.type) for link in links]
        self.mean, self.precision = np.zeros(K), np.eye(K)
        self.coefficients: list[Floats] = [
            np.zeros((len(link.spread), K), dtype) for link in self.links
        ]
        self.parts: list[Floats] = [np.zeros_like(self.x) for _ in links]
        self.strengths: list[float] = [1.0 for _ in links]
        self.counts: NDArray[np.integer]
        self.noise_strength: float
        self.counts, self.noise_strength = rows.positive_counts.cpu().numpy(), noise_strength
        self.relative_precision: Floats = np.ones(len(self.x))

    def state(self, *, cut: bool = False) -> State:
        """Return what draws change, for a `Checkpoint`; its rows may be those of this process."""
        state = {name: unpacked(getattr(self, name)) for name in _CHANGING}
        return state | {name: own_lines(state[name]) for name in _OF_LINES if cut}

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, dict), "as `state` returned it"
        for name in _CHANGING:
            setattr(self, name, packed(getattr(self, name), state[name]))
        self.x = self.moments.unknowns.cpu().numpy()

    def take(self, values: torch.Tensor) -> None:
        """Take other values of the entries, in the order of the rows."""
        assert isinstance(self.rows, GaussianRows), "values are drawn in one process"
        self.rows = replace(self.rows, values=values)

    def draw_prior(self) -> None:
        """Draw mean and precision, then each link and its strength, given the factors."""
        rng = self.lines.rng
        rest = self.x - sum(self.parts) if self.parts else self.x
        links = zip(self.strengths, self.coefficients, strict=True)
        scatter = sum((tau * _gram(c) for tau, c in links), np.zeros_like(self.precision))
        degrees = sum(len(c) for c in self.coefficients)
        self.mean: Floats
        self.precision: Floats
        self.mean, self.precision = draw_normal_wishart(
            *self._sums(rest), self.lines.size, scatter, degrees, rng
        )
        root = np.linalg.inv(np.linalg.cholesky(self.precision)).T.astype(self.x.dtype)
        for k, link in enumerate(self.links):
            others = [part for j, part in enumerate(self.parts) if j != k]
            residual = self.x - self.mean.astype(self.x.dtype) - sum(others)
            c = link.draw(residual, self.strengths[k], root, rng)
            self.coefficients[k], self.parts[k] = c, link.apply(c)
            energy = float(np.sum(_gram(c) * self.precision))
            shape, rate = _LINK_SHAPE + c.size / 2, _LINK_RATE + energy / 2
            self.strengths[k] = rng.gamma(shape) / rate

    def draw_factors(self, other: Side, noise_precision: float) -> Floats:
        """Draw factors and noise given the other side; return squared residuals by row."""
        centre = self.mean + sum(self.parts) if self.parts else self.mean
        pull = np.broadcast_to(centre @ self.precision, self.x.shape).copy()
        noise = self.lines.normal(self.x.shape[1], self.x.dtype.type)
        losses = self._draw(other, noise_precision * self.relative_precision, pull, noise)
        self.x = self.moments.unknowns.cpu().numpy()
        if math.isfinite(self.noise_strength):
            gammas = relative(self.counts, noise_precision * losses, self.noise_strength)
            self.relative_precision = self.lines.gamma(gammas.shape) / gammas.rate
        return losses

    def _sums(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the sum of all rows, and of their outer products, in one reduction."""
        wide = x.astype(np.float64)
        both = self.lines.total(np.vstack((wide.sum(0), wide.T @ wide)))
        return both[0], both[1:]

    def _draw(self, other: Side, scales: Floats, pull: Floats, noise: Floats) -> Floats:
        """Set the moments to a draw, on the device of the entries; return the losses."""
        device = self.moments.means.device
        parts = (scales, self.precision, pull, noise, other.relative_precision)
        names = ("scales", "precision", "pull", "noise", "multipliers")
        moved = (torch.from_numpy(x).to(device) for x in parts)
        given = dict(zip(names, moved, strict=True))
        return self.rows.draw(self.moments, other.moments, **given).cpu().numpy()


def draw_normal_wishart(
    total: Floats,
    squares: Floats,
    count: int,
    scatter: Floats,
    degrees: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    r"""Draw mean and precision of vectors under the Normal-Wishart prior.

    Parameters
    ----------
    total : array, shape (K,), float64
        Their sum.
    squares : array, shape (K, K), float64
        The sum of their outer products.
    count : int
    scatter : array, shape (K, K)
        :math:`\sum c c^T` of other vectors :math:`c \sim N(0, \Lambda^{-1})`.
    degrees : int
        How many those are.
    rng : numpy.random.Generator

    References
    ----------
    Salakhutdinov and Mnih (2008), Bayesian probabilistic matrix factorization, equation 14.
    """
    K, weight = len(total), _MEAN_WEIGHT + count
    mean = total / weight
    inverse_scale = np.eye(K) + squares - weight * np.outer(mean, mean) + scatter
    precision = draw_wishart(inverse_scale, K + count + degrees, rng)
    deviation = np.linalg.solve(np.linalg.cholesky(weight * precision).T, rng.standard_normal(K))
    return mean + deviation, precision


def draw_wishart(inverse_scale: Floats, degrees: float, rng: np.random.Generator) -> Floats:
    """Draw from the Wishart distribution, of mean ``degrees inverse_scale^-1``.

    References
    ----------
    Bartlett's decomposition: Smith and Hocking (1972), algorithm AS 53.
    """
    K = len(inverse_scale)
    B = np.tril(rng.standard_normal((K, K)), -1)
    B[np.diag_indices(K)] = np.sqrt(rng.chisquare(degrees - np.arange(K)))
    # With inverse_scale = C C^T, C^-T B B^T C^-1 has scale matrix C^-T C^-1 = inverse_scale^-1.
    root = np.linalg.solve(np.linalg.cholesky(inverse_scale).T, B)
    return root @ root.T


def _gram(x: Floats) -> Floats:
    return (x.T @ x).astype(np.float64)
