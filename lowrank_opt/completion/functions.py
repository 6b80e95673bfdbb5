"""Solvers as functions of observations and a rank: each is `complete` with that solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from lowrank_opt.completion.bayes.gibbs import Gibbs
from lowrank_opt.completion.bayes.variational import Variational
from lowrank_opt.completion.complete import ProblemOptions, complete
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.als import ALS
from lowrank_opt.completion.solvers.fixed_rank.gauss_newton import GaussNewton
from lowrank_opt.completion.solvers.fixed_rank.rank_stages import Start
from lowrank_opt.completion.solvers.fixed_rank.riemannian import Riemannian
from lowrank_opt.completion.solvers.fixed_rank.scaled_gd import ScaledGD
from lowrank_opt.completion.solvers.fixed_rank.singular_value_projection import (
    SingularValueProjection,
)
from lowrank_opt.completion.solvers.frank_wolfe import FrankWolfe
from lowrank_opt.completion.solvers.max_norm import MaxNorm
from lowrank_opt.completion.solvers.sgd import SGD
from lowrank_opt.completion.solvers.soft_impute import SoftImpute
from lowrank_opt.observations import Observations
from lowrank_opt.sets import FeasibleSet

if TYPE_CHECKING:
    import torch

    from lowrank_opt.completion.loop.checkpoint import Checkpoint
    from lowrank_opt.completion.loop.progress import Progress
    from lowrank_opt.completion.model.problem import Bias
    from lowrank_opt.completion.model.side import Features


class _Run(TypedDict, total=False):
    validation: float | Observations | None
    patience: int | None
    progress: Progress
    checkpoint: Checkpoint | None
    start: CompletionResult | None


class _RunFromStages(TypedDict, total=False):
    validation: float | Observations | None
    patience: int | None
    progress: Progress
    checkpoint: Checkpoint | None


def als(
    observations: Observations,
    rank: int,
    *,
    penalty: float,
    exponent: float = 1.0,
    bias_ratio: float = 1.0,
    sweeps: int = 20,
    method: Literal["exact", "cg"] = "exact",
    bias: Bias = "additive",
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix by alternating least squares: `ALS`, its penalty weighted by default.

    The penalty of a bias is `bias_ratio` times that of a factor.

    Examples
    --------
    >>> import torch
    >>> observed = Observations.from_dense(torch.outer(torch.arange(1.0, 6.0), torch.ones(4)))
    >>> result = als(observed, 1, penalty=1e-3)
    >>> bool((result.predict([0, 4], [0, 0]) - torch.tensor([1.0, 5.0])).abs().max() < 0.02)
    True
    """
    solver = ALS(exponent=exponent, method=method, tolerance=tolerance, max_iterations=sweeps)
    rate = bias_ratio * penalty
    settings: ProblemOptions = {"penalty": penalty, "bias": bias, "bias_penalty": rate}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def soft_impute(
    observations: Observations,
    rank: int,
    *,
    penalty: float,
    bias: Bias = "additive",
    bias_penalty: float = 1.0,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix with a penalty on its nuclear norm: `SoftImpute`.

    Examples
    --------
    >>> import torch
    >>> observed = Observations.from_dense(torch.diag(torch.tensor([3.0, 1.0])))
    >>> result = soft_impute(observed, 2, penalty=0.5, bias=None)
    >>> result.operator.singular_values().round(decimals=3)
    tensor([2.5000, 0.5000])
    """
    solver = SoftImpute(tolerance, max_iterations)
    settings: ProblemOptions = {"penalty": penalty, "bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def max_norm(
    observations: Observations,
    rank: int,
    *,
    radius: float,
    bias: Bias = "additive",
    bias_penalty: float = 1.0,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix whose factors have rows of bounded length: `MaxNorm`.

    Examples
    --------
    >>> import torch
    >>> observed = Observations.from_dense(torch.full((4, 3), 2.0))
    >>> result = max_norm(observed, 2, radius=1.5, bias=None)
    >>> result.predict([0, 3], [0, 2])
    tensor([1.5000, 1.5000])
    """
    solver = MaxNorm(radius, tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def frank_wolfe(
    observations: Observations,
    feasible_set: FeasibleSet,
    *,
    bias: Bias = "additive",
    bias_penalty: float = 1.0,
    tolerance: float = 1e-4,
    max_iterations: int = 300,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix over a convex set until the gap is `tolerance` of it: `FrankWolfe`.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import SchattenBall
    >>> observed = Observations.from_dense(torch.diag(torch.tensor([3.0, 1.0])))
    >>> ball = SchattenBall(p=1, radius=2.0, rank=2)
    >>> result = frank_wolfe(observed, ball, bias=None, tolerance=1e-6)
    >>> result.operator.singular_values().round(decimals=3), result.certificate().gap < 1e-5
    (tensor([2.]), True)
    """
    solver = FrankWolfe(tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(
        observations, feasible_set, solver=solver, generator=generator, **settings, **run
    )


def sgd(
    observations: Observations,
    rank: int | FeasibleSet | None = None,
    *,
    penalty: float | None = None,
    learning_rate: float | None = None,
    max_iterations: int | None = None,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix by stochastic gradient steps from a start near zero: `SGD`.

    Examples
    --------
    >>> import torch
    >>> truth = torch.outer(torch.arange(1.0, 41.0), torch.arange(1.0, 31.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(40, 30) == 0, torch.nan))
    >>> result = sgd(observed, 2, penalty=0.0, generator=torch.Generator().manual_seed(0))
    >>> errors = result.predict([9, 19, 24], [9, 19, 24]) - torch.tensor([100.0, 400.0, 625.0])
    >>> bool(errors.abs().max() < 4)
    True
    """
    solver = SGD(penalty, learning_rate, max_iterations)
    return complete(observations, rank, solver=solver, generator=generator, **run)


def variational(
    observations: Observations,
    rank: int | FeasibleSet | None = None,
    *,
    noise_strength: float = 50.0,
    tolerance: float = 2e-3,
    max_iterations: int = 100,
    generator: torch.Generator | None = None,
    **run: Unpack[_Run],
) -> CompletionResult:
    """Complete a matrix by the mean of a Gaussian approximation to the posterior: `Variational`.

    Examples
    --------
    >>> import torch
    >>> truth = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(8, 6) == 0, torch.nan))
    >>> result = variational(observed, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((result.predict([1, 2], [1, 2]) - torch.tensor([4.0, 9.0])).abs().max() < 0.5)
    True
    """
    solver = Variational(noise_strength, tolerance, max_iterations)
    return complete(observations, rank, solver=solver, generator=generator, **run)


def bayesian(
    observations: Observations,
    rank: int = 16,
    *,
    loss: Literal["squared", "ordered_probit"] = "squared",
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
    """Sample the posterior of a biased low-rank matrix given noisy entries: `Gibbs`.

    Examples
    --------
    >>> import torch
    >>> truth = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(8, 6) == 0, torch.nan))
    >>> posterior = bayesian(observed, 2, generator=torch.Generator().manual_seed(0))
    >>> mean, std = posterior.predict([1, 2], [1, 2], return_std=True)
    >>> bool(((mean - torch.tensor([4.0, 9.0])).abs() < 4 * std).all())
    True
    """
    return complete(
        observations,
        rank,
        solver=Gibbs(noise_strength, burn_in, samples, thinning),
        loss=loss,
        implicit=implicit,
        row_features=row_features,
        col_features=col_features,
        generator=generator,
        progress=progress,
    )


def riemannian(
    observations: Observations,
    rank: int,
    *,
    start: Start = "stages",
    bias: Bias = None,
    bias_penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    generator: torch.Generator | None = None,
    **run: Unpack[_RunFromStages],
) -> CompletionResult:
    """Complete a matrix by Riemannian conjugate gradients at a fixed rank: `Riemannian`.

    Examples
    --------
    >>> import torch
    >>> truth = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 5.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(5, 4) == 0, torch.nan))
    >>> riemannian(observed, 1).predict(3, 3)
    tensor(16.0000)
    """
    solver = Riemannian(start, tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def scaled_gd(
    observations: Observations,
    rank: int,
    *,
    start: Start = "stages",
    bias: Bias = None,
    bias_penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
    generator: torch.Generator | None = None,
    **run: Unpack[_RunFromStages],
) -> CompletionResult:
    """Complete a matrix by scaled gradient descent at a fixed rank: `ScaledGD`."""
    solver = ScaledGD(start, tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def gauss_newton(
    observations: Observations,
    rank: int,
    *,
    inner_iterations: int = 100,
    start: Start = "stages",
    bias: Bias = None,
    bias_penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    generator: torch.Generator | None = None,
    **run: Unpack[_RunFromStages],
) -> CompletionResult:
    """Complete a matrix by Gauss-Newton steps at a fixed rank: `GaussNewton`."""
    solver = GaussNewton(inner_iterations, start, tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)


def singular_value_projection(
    observations: Observations,
    rank: int,
    *,
    start: Start = "stages",
    bias: Bias = None,
    bias_penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    generator: torch.Generator | None = None,
    **run: Unpack[_RunFromStages],
) -> CompletionResult:
    """Complete a matrix by accelerated singular value projection: `SingularValueProjection`."""
    solver = SingularValueProjection(start, tolerance, max_iterations)
    settings: ProblemOptions = {"bias": bias, "bias_penalty": bias_penalty}
    return complete(observations, rank, solver=solver, generator=generator, **settings, **run)
