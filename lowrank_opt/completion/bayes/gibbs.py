"""Bayesian matrix factorization by Gibbs sampling, with or without features."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_opt.completion.bayes.gibbs_sweeps import Side
from lowrank_opt.completion.bayes.noise import check_noise_strength, common
from lowrank_opt.completion.bayes.posterior import BayesianResult
from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.progress import Progress, reporting
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.checks import check_counts
from lowrank_opt.completion.model.implicit import implicit_features
from lowrank_opt.completion.model.side import FeatureLink
from lowrank_opt.errors import ShapeError
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from lowrank_opt.completion.model.side import Features

# Variational sweeps before the first draw: cheaper than as many draws, and they get further.
_SWEEPS_TO_START = 8


def bayesian(
    observations: Observations,
    rank: int = 16,
    *,
    implicit: bool = False,
    row_features: Sequence[Features] = (),
    col_features: Sequence[Features] = (),
    noise_strength: float = 50.0,
    burn_in: int = 10,
    samples: int = 100,
    thinning: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> BayesianResult:
    r"""Sample the posterior of a biased low-rank matrix given noisy entries.

    :math:`y_k \sim N(\mu + a_i + c_j + u_i^T v_j, (\tau w_k \alpha_i \beta_j)^{-1})`, where
    :math:`(u_i, a_i) \sim N(\mu_U + \sum_l B_l^T f_{li}, \Lambda_U^{-1})`, columns likewise,
    with Normal-Wishart priors on :math:`(\mu_U, \Lambda_U)`, matrix-normal priors on the links
    :math:`B_l` of the features :math:`f_l`, and Gamma priors on precisions. Nothing needs to be
    tuned.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        On the CPU; the weights are relative noise precisions.
    rank : int
        Of the factors, without the biases.
    implicit : bool
        Use as features, both ways, which entries were observed.
    row_features, col_features : sequence of Tensor, array or sparse matrix, shapes (m, f), (n, f)
        Each gets a strength of its own. Rows never observed are predicted from them.
    noise_strength : float
        :math:`\nu`: :math:`\alpha_i, \beta_j \sim \text{Gamma}(\nu/2, \nu/2)`, so that a row or
        column with that many entries is half-way between the common noise level and its own.
        Infinite for one noise level.
    burn_in, samples, thinning : int
        Sweeps left out first, draws kept, and sweeps for each draw kept.
    generator : torch.Generator, optional
        The result does not depend on the number of threads of the row updates.
    progress : bool or callable

    Returns
    -------
    BayesianResult
        In the dtype of the observations, of draws in float32. Its history has as objective the sum
        of squared residuals of each draw.

    Raises
    ------
    RadiusError
        If a count is not a positive integer.
    OptionError
        If `noise_strength` is not positive.
    ShapeError
        If features do not have a line for each row or column, or something is not on the CPU.

    References
    ----------
    Salakhutdinov and Mnih (2008), Bayesian probabilistic matrix factorization using Markov chain
    Monte Carlo, section 3.3; the links are those of Simm et al. (2017), Macau; the noise by rows
    and columns is that of Lakshminarayanan, Bouchard and Archambeau (2011), Robust Bayesian matrix
    factorisation. The start is that of `variational`.

    Examples
    --------
    >>> truth = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(8, 6) == 0, torch.nan))
    >>> posterior = bayesian(observed, 2, generator=torch.Generator().manual_seed(0))
    >>> mean, std = posterior.predict([1, 2], [1, 2], return_std=True)
    >>> bool(((mean - torch.tensor([4.0, 9.0])).abs() < 4 * std).all())
    True
    """
    check_counts(rank=rank, samples=samples, thinning=thinning, burn_in=burn_in + 1)
    check_noise_strength(noise_strength)
    if observations.device.type != "cpu":
        raise ShapeError(
            f"bayesian needs observations on the CPU; got {observations.device}: "
            "use .to(device='cpu')"
        )
    links = _links(observations, row_features, col_features, implicit=implicit)
    sampler = _Sampler(observations, rank, links, noise_strength, generator)
    sweeps = burn_in + samples * thinning
    kept: list[_Draw] = []
    with reporting(progress, sweeps) as report:
        for sweep in range(sweeps):
            report(sampler.sweep())
            if sweep >= burn_in and (sweep - burn_in) % thinning == thinning - 1:
                kept.append(sampler.draw())
    return sampler.result(kept)


_Draw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]


class _Sampler:
    """Alternates between the two sides and the noise, on standardised values."""

    def __init__(
        self,
        observations: Observations,
        rank: int,
        links: tuple[list[FeatureLink], list[FeatureLink]],
        noise_strength: float,
        generator: torch.Generator | None,
    ) -> None:
        self.dtype = observations.dtype
        start = VariationalPosterior(observations, rank, noise_strength, generator, single=True)
        self.offset, self.unit, self.count = start.offset, start.unit, start.count
        self.history, self.started = History(), time.perf_counter()
        for _ in range(_SWEEPS_TO_START):
            start.sweep()
        self.noise_precision = float(start.noise.mean[0])
        self.rng = start.rng
        parts = zip(start.rows, start.sides, links, strict=True)
        self.sides = tuple(Side(*part, noise_strength, self.rng) for part in parts)
        for side, noise in zip(self.sides, start.relative, strict=True):
            side.moments.repack()
            side.relative_precision = noise.mean

    def sweep(self) -> Iteration:
        """Draw everything once."""
        loss = math.nan
        for side, other in (self.sides, self.sides[::-1]):
            side.draw_prior()
            loss = side.draw_factors(other, self.noise_precision)
        noise = common(self.count, loss)
        self.noise_precision = float(self.rng.gamma(noise.shape[0]) / noise.rate[0])
        seconds = time.perf_counter() - self.started
        line = Iteration(loss * self.unit**2, math.nan, math.nan, seconds)
        self.history.append(line)
        return line

    def draw(self) -> _Draw:
        """Return the factors with the biases last, relative precisions, and the common one."""
        rows, cols = self.sides
        alpha, beta = rows.relative_precision, cols.relative_precision
        return rows.x, cols.x, alpha, beta, self.noise_precision

    def result(self, kept: list[_Draw]) -> BayesianResult:
        """Return the kept draws in the unit of the values."""
        root = math.sqrt(self.unit)
        rows, cols, alpha, beta = (
            torch.from_numpy(np.stack([draw[k] for draw in kept])).to(self.dtype) for k in range(4)
        )
        a, c = rows[..., -1] * self.unit, cols[..., -1] * self.unit
        U, V = (x[..., :-1].contiguous().mul_(root) for x in (rows, cols))
        precision = torch.tensor([draw[4] for draw in kept], dtype=torch.float64) / self.unit**2
        finite = all(map(math.isfinite, self.history.objective))
        status = CompletionStatus.CONVERGED if finite else CompletionStatus.NUMERICAL_TROUBLE
        return BayesianResult(U, V, a, c, self.offset, precision, status, self.history, alpha, beta)


def _links(
    observations: Observations,
    row_features: Sequence[Features],
    col_features: Sequence[Features],
    *,
    implicit: bool,
) -> tuple[list[FeatureLink], list[FeatureLink]]:
    rows, cols = list(row_features), list(col_features)
    if implicit:
        for features, extra in zip((rows, cols), implicit_features(observations), strict=True):
            features.append(extra)
    for name, features, size in zip(
        ("row_features", "col_features"), (rows, cols), observations.shape, strict=True
    ):
        for matrix in features:
            if matrix.shape[0] != size:
                raise ShapeError(
                    f"{name} must have {size} lines, one for each; got {tuple(matrix.shape)}"
                )
    return [FeatureLink.of(x) for x in rows], [FeatureLink.of(x) for x in cols]
