"""The one front door: a problem, a solver, a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from lowrank_opt.completion.bayes.gibbs import Gibbs
from lowrank_opt.completion.catalog import (
    check_fits,
    default_solver,
    solver_of,
    with_options,
)
from lowrank_opt.completion.model.problem import Bias, CompletionProblem, Model
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.traits import AnyResult, Solver
from lowrank_opt.errors import NoRightInverseError, NotInSetError, OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization

if TYPE_CHECKING:
    import torch

    from lowrank_opt.completion.loop.checkpoint import Checkpoint
    from lowrank_opt.completion.loop.history import Iteration
    from lowrank_opt.completion.loop.progress import Progress
    from lowrank_opt.completion.model.losses import Loss
    from lowrank_opt.completion.model.side import Features


class ProblemOptions(TypedDict, total=False):
    """What of a `CompletionProblem` `complete` takes besides entries and model."""

    loss: Loss
    prediction_range: tuple[float, float] | None
    bias: Bias
    bias_penalty: float
    penalty: float
    row_features: Sequence[Features]
    col_features: Sequence[Features]
    implicit: bool


class RunOptions(TypedDict, total=False):
    """What of a `Run` `complete` takes."""

    validation: float | Observations | None
    patience: int | None
    generator: torch.Generator | None
    progress: Progress
    checkpoint: Checkpoint | None
    callbacks: tuple[Callable[[Iteration], None], ...]
    start: CompletionResult | None


class Options(ProblemOptions, RunOptions, total=False):
    """All options of `complete` but the solver."""

    tolerance: float | None
    max_iterations: int | None


@overload
def complete(  # pyright: ignore[reportOverlappingOverload]
    observations: Observations | CompletionProblem,
    model: Model = None,
    *,
    solver: Gibbs | Literal["gibbs", "bayesian"],
    **options: Unpack[Options],
) -> BayesianResult: ...
@overload
def complete(
    observations: Observations | CompletionProblem,
    model: Model = None,
    *,
    solver: Solver | str | None = None,
    **options: Unpack[Options],
) -> CompletionResult: ...
def complete(
    observations: Observations | CompletionProblem,
    model: Model = None,
    *,
    solver: Solver | str | None = None,
    loss: Loss | EllipsisType = ...,
    prediction_range: tuple[float, float] | EllipsisType | None = ...,
    bias: Bias | EllipsisType = ...,
    bias_penalty: float | EllipsisType = ...,
    penalty: float | EllipsisType = ...,
    row_features: Sequence[Features] | EllipsisType = ...,
    col_features: Sequence[Features] | EllipsisType = ...,
    implicit: bool | EllipsisType = ...,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    validation: float | Observations | None = None,
    patience: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress = False,
    checkpoint: Checkpoint | None = None,
    callbacks: tuple[Callable[[Iteration], None], ...] = (),
    start: CompletionResult | None = None,
    **unknown: object,
) -> AnyResult:
    r"""Complete a matrix: fit ``W + mean + row bias + column bias`` to the observed entries.

    Parameters
    ----------
    observations : Observations, shape (m, n), or CompletionProblem
        With a problem, no model and no options of a problem.
    model : Parameterization, FeasibleSet, int or None
        Where W is: a parameterization is trained in place, or assigned the result where it can;
        a set; a rank; or nothing. See `CompletionProblem`.
    solver : str or Solver, optional
        One of `lowrank_opt.solvers`, such as ``FrankWolfe(gap=1e-6)``; a name, "frank_wolfe", is
        one with its default options. By default the first in the table of solvers that takes the
        problem: L-BFGS for a parameterization, Frank-Wolfe for a set.
    tolerance, max_iterations : optional
        Of the solver, in the place of its own.
    validation, patience, generator, progress, checkpoint, callbacks, start
        Of the `Run`.
    loss, prediction_range, bias, bias_penalty, penalty, row_features, col_features, implicit
        Of the `CompletionProblem`, whose own defaults hold for what is left out.

    Returns
    -------
    CompletionResult
        The best iterate, detached. Rows and columns without an entry are zero in its operator,
        which increases no norm: their predictions are the biases (an inductive parameterization,
        such as `NestedSVD`, predicts them itself). A bad end is a status, not an error; see
        `CompletionResult.raise_if_failed`. A `BayesianResult` from the solver `Gibbs`.

    Raises
    ------
    ShapeError, ObservationError, OptionError
        If the problem, the run or the solver is not valid in itself.
    OptionError
        If the solver does not take the problem, or has no such option; with the solvers that
        would do.

    Examples
    --------
    >>> import torch
    >>> from lowrank_opt import HomogeneousBall, SchattenBall
    >>> truth = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 5.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(5, 4) == 0, torch.nan))
    >>> complete(observed, HomogeneousBall((5, 4), 2, radius=60.0), bias=None).status.succeeded
    True
    >>> complete(observed, SchattenBall(1, radius=60.0, rank=4), solver="frank_wolfe").shape
    (5, 4)
    >>> complete(observed, 1, solver="gauss_newton", bias=None).predict(3, 3)
    tensor(16.0000)
    """
    if unknown:
        raise OptionError(
            f"complete takes what a problem, a run and every solver have; got {sorted(unknown)}: "
            "pass options of one solver to it, as in solver=lowrank_opt.solvers.ALS(exponent=1.0)"
        )
    run = Run(validation, patience, generator, progress, checkpoint, callbacks, start)
    options = {
        "loss": loss,
        "prediction_range": prediction_range,
        "bias": bias,
        "bias_penalty": bias_penalty,
        "penalty": penalty,
        "row_features": row_features,
        "col_features": col_features,
        "implicit": implicit,
    }
    given = {name: value for name, value in options.items() if value is not ...}
    asked = _problem(observations, model, given)
    chosen = default_solver(asked, run) if solver is None else solver_of(solver)
    chosen = with_options(chosen, tolerance=tolerance, max_iterations=max_iterations)
    check_fits(chosen, asked, run)
    result = chosen.solve(asked, run)
    if "parameterization" not in chosen.traits.sets:
        _assign(asked.model, result)
    return result


def _problem(
    observations: Observations | CompletionProblem, model: Model, options: dict[str, Any]
) -> CompletionProblem:
    if not isinstance(observations, CompletionProblem):
        return CompletionProblem(observations, model, **options)
    named = [*(["model"] if model is not None else []), *options]
    if named:
        raise OptionError(
            f"a problem says everything itself; got {', '.join(named)} besides: use "
            "dataclasses.replace(problem, ...)"
        )
    return observations


def _assign(model: Model, result: AnyResult) -> None:
    if isinstance(model, Parameterization) and isinstance(result, CompletionResult):
        with suppress(NoRightInverseError, NotInSetError):
            _ = model.assign(result.operator)
