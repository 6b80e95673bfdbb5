"""Bayesian matrix factorization by Gibbs sampling, with or without features."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lowrank_opt.completion.bayes.gibbs_sweeps import Side
from lowrank_opt.completion.bayes.likelihood import (
    Gaussian,
    Likelihood,
    OrderedProbit,
    latent_scores,
)
from lowrank_opt.completion.bayes.lines import Lines
from lowrank_opt.completion.bayes.noise import check_noise_strength
from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.completion.loop.checkpoint import State, own_lines
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.checks import check_counts
from lowrank_opt.completion.model.implicit import implicit_features
from lowrank_opt.completion.model.losses import OrderedProbit as OrderedProbitLoss
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.side import FeatureLink
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.traits import Traits
from lowrank_opt.kernels.ordered_levels import OrderedLevels
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import is_cut, whole

_RANK = 16
# Variational sweeps before the first draw: cheaper than as many draws, and they get further.
_SWEEPS_TO_START = 8


@dataclass(frozen=True)
class Gibbs:
    r"""Draws from the posterior of a biased low-rank matrix, with or without features.

    :math:`y_k \sim N(\mu + a_i + c_j + u_i^T v_j, (\tau w_k \alpha_i \beta_j)^{-1})`, where
    :math:`(u_i, a_i) \sim N(\mu_U + \sum_l B_l^T f_{li}, \Lambda_U^{-1})`, columns likewise,
    with Normal-Wishart priors on :math:`(\mu_U, \Lambda_U)`, matrix-normal priors on the links
    :math:`B_l` of the features :math:`f_l`, and Gamma priors on precisions. Nothing needs to be
    tuned. The rank, 16 by default, is that of the factors, without the biases. Each matrix of
    features gets a strength of its own; rows never observed are predicted from them.

    With ``loss="ordered_probit"``, values are ordered levels of such numbers :math:`y_k`, between
    thresholds that are drawn too: the first and the last are fixed, which fixes zero and unit of
    the others. A prediction is the mean level over draws and noise, and only the order of the
    levels matters for the draws. On the CPU, in one process, without weights.

    Parameters
    ----------
    noise_strength : float
        :math:`\nu`: :math:`\alpha_i, \beta_j \sim \text{Gamma}(\nu/2, \nu/2)`, so that a row or
        column with that many entries is half-way between the common noise level and its own.
        Infinite for one noise level.
    burn_in, samples, thinning : int
        Sweeps left out first, draws kept, and sweeps for each draw kept.

    Raises
    ------
    OptionError
        If an option is outside its domain.

    Notes
    -----
    Weights are relative noise precisions. The result is in the dtype of the observations, of
    draws in float32, and does not depend on the number of threads of the row updates. Random
    numbers belong to rows and columns: on several processes the chain is that of one, to rounding,
    also where rows are cut, with the rows of its own in the result of each. Its history has as
    objective the sum of squared residuals of each draw; of ordered levels, minus the
    log-likelihood of the draw before, given its thresholds.

    References
    ----------
    Salakhutdinov and Mnih (2008), Bayesian probabilistic matrix factorization using Markov chain
    Monte Carlo, section 3.3; the links are those of Simm et al. (2017), Macau; the noise by rows
    and columns is that of Lakshminarayanan, Bouchard and Archambeau (2011), Robust Bayesian matrix
    factorisation. The start is that of `Variational`. Ordered levels are those of Albert and Chib
    (1993), Bayesian analysis of binary and polychotomous response data, thresholds moved as in
    Cowles (1996), Accelerating Monte Carlo Markov chain convergence for cumulative-link
    generalized linear models.

    Examples
    --------
    >>> Gibbs(samples=50)
    Gibbs(noise_strength=50.0, burn_in=10, samples=50, thinning=1)
    """

    traits: ClassVar[Traits] = Traits(
        sets=("nothing", "rank"),
        losses="squared, ordered_probit",
        biases=("additive",),
        bias_penalty=False,
        side=True,
        validation=False,
        checkpoint=True,
        distributed=True,
        cut=True,
    )
    noise_strength: float = 50.0
    burn_in: int = 10
    samples: int = 100
    thinning: int = 1

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, thinning=self.thinning, burn_in=self.burn_in + 1)
        check_noise_strength(self.noise_strength)

    def solve(self, problem: CompletionProblem, run: Run) -> BayesianResult:
        """Return the draws kept."""
        rank, links = problem.rank or _RANK, _links(problem)
        observations, checkpoint = problem.observations, run.checkpoint
        state = None if checkpoint is None else checkpoint.restored(observations.device)
        begun = state is not None
        ordered = isinstance(problem.entry_loss, OrderedProbitLoss)
        sampler = _Sampler(
            observations,
            rank,
            links,
            self.noise_strength,
            run.generator,
            ordered=ordered,
            begun=begun,
        )
        if begun:
            sampler.resume(state)
        sweeps = self.burn_in + self.samples * self.thinning
        with run.reporting(sweeps) as report:
            try:
                for sweep in range(len(sampler.history), sweeps):
                    report(sampler.sweep())
                    after = sweep + 1 - self.burn_in
                    if after > 0 and after % self.thinning == 0:
                        sampler.keep()
                    if checkpoint is not None:
                        checkpoint.offer(sweep + 1, sampler.state)
            except KeyboardInterrupt:
                if not sampler.kept:
                    raise
                return sampler.result(CompletionStatus.INTERRUPTED)
        return sampler.result(CompletionStatus.CONVERGED)


_Draw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]


class _Sampler:
    """Alternates between the two sides and the noise, on standardised values."""

    def __init__(
        self,
        observations: Observations,
        rank: int,
        links: tuple[list[FeatureLink], list[FeatureLink]],
        noise_strength: float,
        generator: torch.Generator | None,
        *,
        ordered: bool = False,
        begun: bool = False,
    ) -> None:
        self.dtype, self.device = observations.dtype, observations.device
        scores, thresholds = latent_scores(observations) if ordered else (observations, None)
        start = VariationalPosterior(scores, rank, noise_strength, generator, single=True)
        self.offset, self.unit, self.count = start.offset, start.unit, start.count
        self.history, self.started = History(), time.perf_counter()
        self.kept: list[_Draw] = []
        for _ in range(0 if begun else _SWEEPS_TO_START):
            start.sweep()
        self.noise_precision = float(start.noise.mean[0])
        self.rng = start.rng
        self.likelihood: Likelihood = Gaussian(self.rng)
        self.levels: torch.Tensor | None = None
        if thresholds is not None:
            self.levels = observations.values.double().unique()
            levels, thresholds = OrderedLevels.of(observations), thresholds - self.offset
            self.likelihood = OrderedProbit(levels, thresholds / self.unit, self.rng)
        self.cut = is_cut(observations)
        lines = [Lines(start.observations, 0, self.rng), Lines(start.observations, 1, self.rng)]
        parts = zip(start.rows, start.sides, links, strict=True)
        self.sides = tuple(
            Side(*part, noise_strength, mine) for part, mine in zip(parts, lines, strict=True)
        )
        for side, noise in zip(self.sides, start.relative, strict=True):
            side.moments.repack()
            side.relative_precision = noise.mean

    def sweep(self) -> Iteration:
        """Draw everything once."""
        losses, surprise = np.zeros(0), self._renew()
        for side, other in (self.sides, self.sides[::-1]):
            side.draw_prior()
            losses = side.draw_factors(other, self.noise_precision)
        # Of columns, which are those of all processes.
        loss = float(self.sides[1].relative_precision @ losses)
        self.noise_precision = self.likelihood.noise_precision(self.count, loss)
        seconds = time.perf_counter() - self.started
        objective = loss * self.unit * self.unit if surprise is None else surprise
        line = Iteration(objective, math.nan, math.nan, seconds)
        self.history.append(line)
        return line

    def _renew(self) -> float | None:
        """Draw what is latent of the values; return minus the log-likelihood, if something is."""
        rows, cols = self.sides
        precisions = (self.noise_precision * rows.relative_precision, cols.relative_precision)
        renewed = self.likelihood.renew((rows.moments, cols.moments), precisions)
        if renewed is None:
            return None
        by_rows, by_cols, surprise = renewed
        rows.take(by_rows)
        cols.take(by_cols)
        return surprise

    def keep(self) -> None:
        """Keep the factors with the biases last, relative precisions, and the common one."""
        rows, cols = self.sides
        alpha, beta = rows.relative_precision, cols.relative_precision
        draw = (rows.x, cols.x, alpha, beta, self.noise_precision)
        thresholds = self.likelihood.thresholds
        self.kept.append((*draw, thresholds * self.unit + self.offset))

    def state(self) -> State:
        """Return what draws change, for a `Checkpoint`."""
        rows, cols = self.sides
        kept: list[State] = list(self.kept)
        if self.cut:
            kept = [[own_lines(u), v, own_lines(a), b, *rest] for u, v, a, b, *rest in self.kept]
        return {
            "sides": [rows.state(cut=self.cut), cols.state()],
            "noise_precision": self.noise_precision,
            "likelihood": self.likelihood.state(),
            "random": self.rng.bit_generator.state,
            "history": self.history.columns(),
            "kept": kept,
        }

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, dict), "as `state` returned it"
        for side, part in zip(self.sides, state["sides"], strict=True):
            side.resume(part)
        self.noise_precision = state["noise_precision"]
        self.likelihood.resume(state["likelihood"])
        self.kept = [tuple(draw) for draw in state["kept"]]
        self.rng.bit_generator.state = state["random"]
        self.history = History(**state["history"])
        self.started -= self.history.seconds[-1]

    def result(self, status: CompletionStatus) -> BayesianResult:
        """Return the kept draws in the unit of the values."""
        kept = self.kept
        root = math.sqrt(self.unit)
        rows, cols, alpha, beta = (
            torch.from_numpy(np.stack([draw[k] for draw in kept])).to(self.device, self.dtype)
            for k in range(4)
        )
        a, c = rows[..., -1] * self.unit, cols[..., -1] * self.unit
        U, V = (x[..., :-1].contiguous().mul_(root) for x in (rows, cols))
        precision = (
            U.new_tensor([draw[4] for draw in kept], dtype=torch.float64) / self.unit / self.unit
        )
        finite = all(map(math.isfinite, self.history.objective))
        status = status if finite else CompletionStatus.NUMERICAL_TROUBLE
        thresholds = torch.from_numpy(np.stack([draw[5] for draw in kept])).to(self.device)
        ordered = (None, None) if self.levels is None else (thresholds, self.levels)
        parts = (U, V, a, c, self.offset, precision, status, self.history, alpha, beta)
        return BayesianResult(*parts, *ordered)


def _links(problem: CompletionProblem) -> tuple[list[FeatureLink], list[FeatureLink]]:
    rows, cols = list(problem.row_features), list(problem.col_features)
    if problem.implicit:
        extra = implicit_features(whole(problem.observations))
        rows, cols = [*rows, extra[0]], [*cols, extra[1]]
    return [FeatureLink.of(x) for x in rows], [FeatureLink.of(x) for x in cols]
