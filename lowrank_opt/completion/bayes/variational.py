"""Variational Bayesian factorization: a point estimate that finds its own penalties."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.completion.bayes.growth import GrowingSweeps
from lowrank_opt.completion.bayes.noise import check_noise_strength
from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.completion.loop.checkpoint import Checkpoint
from lowrank_opt.completion.loop.progress import Progress
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.completion.solvers.iterates import run
from lowrank_opt.errors import ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.sets import FeasibleSet

Floats = NDArray[np.floating]


def variational(
    observations: Observations,
    rank: int | FeasibleSet | None = None,
    *,
    noise_strength: float = 50.0,
    tolerance: float = 2e-3,
    max_iterations: int = 100,
    validation: float | Observations | None = None,
    patience: int = 5,
    generator: torch.Generator | None = None,
    progress: Progress = False,
    checkpoint: Checkpoint | None = None,
) -> CompletionResult:
    r"""Complete a matrix by the mean of a Gaussian approximation to the posterior.

    The model is that of `bayesian`: :math:`y_k \sim N(\mu + a_i + c_j + u_i^T v_j, (\tau w_k
    \alpha_i \beta_j)^{-1})` with a Normal-Wishart prior on the rows' :math:`(u_i, a_i)`, the
    columns' likewise, and Gamma priors on all precisions. The posterior is approximated by
    independent rows and columns, each with a full covariance. Given the other side, the mean of a
    row solves a ridge regression whose penalty matrix is the summed covariance of the columns it
    has entries in, and the prior: every row has a penalty of its own, and nothing is tuned.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        On the CPU; the weights are relative noise precisions.
    rank : int, FeasibleSet or None
        Of the factors, an upper bound. With a set, its rank is used, and the mean is projected onto
        the set. By default it grows with the number of entries per row and column as
        :math:`1.3 (N / (m + n))^{0.65}`, within 2 and 32, which is 12 on MovieLens-100K and 25 on
        MovieLens-1M. A larger rank is reached from there in doublings, for as long as each brings
        more live directions (`GrowingSweeps`): a rank that the data do not support costs little and
        changes little.
    noise_strength : float
        :math:`\nu`: :math:`\alpha_i, \beta_j \sim \text{Gamma}(\nu/2, \nu/2)`, so that a row or
        column with that many entries is half-way between the common noise level and its own.
        Infinite for one noise level.
    tolerance : float
        Stop when the free energy falls by less than half this, per entry, in a sweep.
    max_iterations : int
        Largest number of sweeps.
    validation : float, Observations or None
        Held-out entries, or their share; the sweep with the smallest error there is returned.
    patience : int
        Sweeps without a smaller error before stopping.
    generator : torch.Generator, optional
        For the start and the held-out entries. The result does not depend on the number of
        threads.
    progress : bool or callable
    checkpoint : Checkpoint, optional
        Where to leave the state after a sweep, and to go on from it.

    Returns
    -------
    CompletionResult
        In the dtype of the observations. Its objective is :math:`\frac N2 s^2 e^{2 F / N} / (2 \pi
        e)` for the free energy F (the negative evidence bound) of the N values in units of their
        standard deviation s: half the sum of squares that Gaussian noise of the same evidence would
        have. It never increases, up to rounding, while the rank stays the same.

    Raises
    ------
    OptionError
        If a setting is outside its domain.
    ShapeError
        If observations are not on the CPU, or a set or validation entries do not fit them.

    References
    ----------
    Lim and Teh (2007), Variational Bayesian approach to movie rating prediction, section 3, with
    the hyper-priors of Salakhutdinov and Mnih (2008); noise by rows and columns as in
    Lakshminarayanan, Bouchard and Archambeau (2011), Robust Bayesian matrix factorisation.

    Examples
    --------
    >>> truth = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(8, 6) == 0, torch.nan))
    >>> result = variational(observed, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((result.predict([1, 2], [1, 2]) - torch.tensor([4.0, 9.0])).abs().max() < 0.5)
    True
    """
    feasible = rank if isinstance(rank, FeasibleSet) else None
    size = _rank_of(rank, observations)
    _check(observations, size, noise_strength, tolerance, max_iterations, patience)
    fitted, held_out = training_and_validation(observations, validation, generator)
    first = min(size, _ample_rank(observations))
    model = VariationalPosterior(fitted, first, noise_strength, generator)
    return run(
        GrowingSweeps(model, size, tolerance, feasible),
        fitted,
        held_out=held_out,
        tolerance=0.0,
        max_iterations=max_iterations,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
    )


def _rank_of(rank: int | FeasibleSet | None, observations: Observations) -> int:
    """Return the rank of the factors; a set without a bound of its own allows the default."""
    if isinstance(rank, int):
        return rank
    bound = None if rank is None else rank.rank
    return _ample_rank(observations) if bound is None else min(bound, *observations.shape)


def _ample_rank(observations: Observations) -> int:
    ample = round(1.3 * (len(observations) / sum(observations.shape)) ** 0.65)
    return min(max(ample, 2), 32)


def _check(
    observations: Observations,
    rank: int,
    noise_strength: float,
    tolerance: float,
    max_iterations: int,
    patience: int,
) -> None:
    check_counts(rank=rank, max_iterations=max_iterations, patience=patience)
    check_amounts(tolerance=tolerance)
    check_noise_strength(noise_strength)
    if observations.device.type != "cpu":
        raise ShapeError(
            f"variational needs observations on the CPU; got {observations.device}: "
            "use .to(device='cpu')"
        )
