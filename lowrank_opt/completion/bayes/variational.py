"""Variational Bayesian factorization: a point estimate that finds its own penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank_opt.completion.bayes.growth import GrowingSweeps
from lowrank_opt.completion.bayes.noise import check_noise_strength
from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.completion.model.checks import check_amounts, check_counts
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.iterates import iterate
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import entry_count, whole_shape

_PATIENCE = 5


@dataclass(frozen=True)
class Variational:
    r"""The mean of a Gaussian approximation to the posterior, which finds its own penalties.

    The model is that of `Gibbs`: :math:`y_k \sim N(\mu + a_i + c_j + u_i^T v_j, (\tau w_k
    \alpha_i \beta_j)^{-1})` with a Normal-Wishart prior on the rows' :math:`(u_i, a_i)`, the
    columns' likewise, and Gamma priors on all precisions. The posterior is approximated by
    independent rows and columns, each with a full covariance. Given the other side, the mean of a
    row solves a ridge regression whose penalty matrix is the summed covariance of the columns it
    has entries in, and the prior: every row has a penalty of its own, and nothing is tuned.

    The rank of the problem is an upper bound. With a set, its rank is used, and the mean is
    projected onto the set. Without any it grows with the number of entries per row and column as
    :math:`1.3 (N / (m + n))^{0.65}`, within 2 and 32, which is 12 on MovieLens-100K and 25 on
    MovieLens-1M. A larger rank is reached from there in doublings, for as long as each brings more
    live directions (`GrowingSweeps`): a rank that the data do not support costs little and changes
    little.

    Parameters
    ----------
    noise_strength : float
        :math:`\nu`: :math:`\alpha_i, \beta_j \sim \text{Gamma}(\nu/2, \nu/2)`, so that a row or
        column with that many entries is half-way between the common noise level and its own.
        Infinite for one noise level.
    tolerance : float
        Stop when the free energy falls by less than half this, per entry, in a sweep.
    max_iterations : int
        Largest number of sweeps.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Weights are relative noise precisions. Patience is 5 sweeps. The result is in the dtype of the
    observations, and does not depend on the number of threads. Its objective is :math:`\frac N2 s^2
    e^{2 F / N} / (2 \pi e)` for the free energy F (the negative evidence bound) of the N values in
    units of their standard deviation s: half the sum of squares that Gaussian noise of the same
    evidence would have. It never increases, up to rounding, while the rank stays the same.

    References
    ----------
    Lim and Teh (2007), Variational Bayesian approach to movie rating prediction, section 3, with
    the hyper-priors of Salakhutdinov and Mnih (2008); noise by rows and columns as in
    Lakshminarayanan, Bouchard and Archambeau (2011), Robust Bayesian matrix factorisation.

    Examples
    --------
    >>> Variational(max_iterations=10)
    Variational(noise_strength=50.0, tolerance=0.002, max_iterations=10)
    """

    traits: ClassVar[Traits] = Traits(
        sets=("nothing", "rank", "set"),
        bias_penalty=False,
        checkpoint=True,
        distributed=True,
        cut=True,
    )
    noise_strength: float = 50.0
    tolerance: float = 2e-3
    max_iterations: int = 100

    def __post_init__(self) -> None:
        check_counts(max_iterations=self.max_iterations)
        check_amounts(tolerance=self.tolerance)
        check_noise_strength(self.noise_strength)

    def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
        """Return the mean of the posterior after the best sweep."""
        rank = _rank_of(problem)
        fitted, held_out = run.split(problem.observations)
        first = min(rank, _ample_rank(problem.observations))
        model = VariationalPosterior(
            fitted, first, self.noise_strength, run.generator, biased=problem.bias is not None
        )
        return iterate(
            GrowingSweeps(model, rank, self.tolerance, problem.feasible_set),
            fitted,
            held_out,
            run,
            tolerance=0.0,
            max_iterations=self.max_iterations,
            patience=_PATIENCE,
        )


def _rank_of(problem: CompletionProblem) -> int:
    """Return the rank of the factors."""
    if isinstance(problem.model, int):
        return problem.model
    if problem.rank is not None:
        return min(problem.rank, *whole_shape(problem.observations))
    return _ample_rank(problem.observations)


def _ample_rank(observations: Observations) -> int:
    ample = round(1.3 * (entry_count(observations) / sum(whole_shape(observations))) ** 0.65)
    return min(max(ample, 2), 32)
