"""Solvers by name: what `complete` hands a parameterization's rank or set to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch

from lowrank_opt.completion.bayes.variational import variational
from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
from lowrank_opt.completion.loop.checkpoint import Checkpoint
from lowrank_opt.completion.loop.progress import Progress
from lowrank_opt.completion.model.losses import Loss
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.als import als
from lowrank_opt.completion.solvers.fixed_rank.gauss_newton import gauss_newton
from lowrank_opt.completion.solvers.fixed_rank.riemannian import riemannian
from lowrank_opt.completion.solvers.fixed_rank.scaled_gd import scaled_gd
from lowrank_opt.completion.solvers.fixed_rank.singular_value_projection import (
    singular_value_projection,
)
from lowrank_opt.completion.solvers.frank_wolfe import frank_wolfe
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.completion.solvers.max_norm import max_norm
from lowrank_opt.completion.solvers.minimizers import OptimizerChoice
from lowrank_opt.completion.solvers.sgd import sgd
from lowrank_opt.completion.solvers.soft_impute import soft_impute
from lowrank_opt.errors import NoRightInverseError, NotInSetError, OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import RankAtMost

Solver: TypeAlias = Callable[..., CompletionResult]
SolverChoice: TypeAlias = (
    Literal[
        "gradient",
        "als",
        "frank_wolfe",
        "gauss_newton",
        "max_norm",
        "riemannian",
        "scaled_gd",
        "sgd",
        "singular_value_projection",
        "soft_impute",
        "variational",
    ]
    | Solver
)

SOLVERS: dict[str, Solver] = {
    solver.__name__: solver
    for solver in (
        als,
        frank_wolfe,
        gauss_newton,
        max_norm,
        riemannian,
        scaled_gd,
        sgd,
        singular_value_projection,
        soft_impute,
        variational,
    )
}


@dataclass(frozen=True)
class SolverOptions:
    """The options of `complete`; those left at these defaults take the solver's own."""

    loss: Loss = "squared"
    bias: Literal["additive"] | None = "additive"
    bias_penalty: float = 1.0
    penalty: float = 0.0
    optimizer: OptimizerChoice = "lbfgs"
    tolerance: float = 1e-5
    max_iterations: int = 1000
    validation: float | Observations | None = None
    patience: int = 20
    generator: torch.Generator | None = None
    progress: Progress = False
    checkpoint: Checkpoint | None = None

    def changed(self) -> dict[str, object]:
        """Return the options that are not at their default."""
        given, default = vars(self), vars(SolverOptions())
        plain = (str, int, float, type(None))
        return {
            name: value
            for name, value in given.items()
            if not (isinstance(value, plain) and value == default[name])
        }


def solve(
    solver: SolverChoice,
    observations: Observations,
    parameterization: Parameterization,
    options: SolverOptions,
) -> CompletionResult:
    """Run a solver on the rank or the feasible set of a parameterization.

    Parameters
    ----------
    solver : str or callable
        A callable is called as ``solver(observations, x, **options)``, x the rank if its second
        parameter is called ``rank``, the parameterization if it is called so, else the set.
    observations : Observations
        In the dtype of the parameterization.
    parameterization : Parameterization
        Assigned the result, if it has a right inverse and the result is in its set.
    options : SolverOptions
        Those that differ from their default are passed on.

    Raises
    ------
    OptionError
        If the solver is unknown, or fits neither the set nor the options.
    """
    function, name = _resolve(solver)
    if name == "als":
        result = _als(function, observations, parameterization, options)
    else:
        result = _call(function, name, observations, parameterization, options)
    with suppress(NoRightInverseError, NotInSetError):
        _ = parameterization.assign(result.operator)
    return result


def _resolve(solver: SolverChoice) -> tuple[Solver, str]:
    if callable(solver):
        inner = solver.func if isinstance(solver, partial) else solver
        return solver, getattr(inner, "__name__", type(inner).__name__)
    if solver not in SOLVERS:
        known = ", ".join(map(repr, ("gradient", *SOLVERS)))
        raise OptionError(f"solver must be {known} or a callable; got solver={solver!r}")
    return SOLVERS[solver], solver


def _call(
    function: Solver,
    name: str,
    observations: Observations,
    parameterization: Parameterization,
    options: SolverOptions,
) -> CompletionResult:
    parameters = inspect.signature(function).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    target = _target(list(parameters.values())[1], name, parameterization)
    given = options.changed()
    # Solvers disagree on whether biases are fitted by default: this one is always said.
    if "bias" in parameters:
        given["bias"] = options.bias
    unknown = [key for key in given if key not in parameters and not accepts_any]
    if unknown:
        raise OptionError(
            f"solver {name!r} takes {_named(parameters)}; got {', '.join(sorted(unknown))}: leave "
            "them at their defaults, or use solver='gradient'"
        )
    missing = [
        p.name
        for p in list(parameters.values())[2:]
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in given
    ]
    if missing:
        raise OptionError(
            f"solver {name!r} needs {', '.join(missing)}; got none: pass it, or for an "
            f"option that complete does not have, functools.partial({name}, {missing[0]}=...)"
        )
    return function(observations, target, **given)


def _target(parameter: inspect.Parameter, name: str, parameterization: Parameterization) -> object:
    if parameter.name == "parameterization":
        return parameterization
    feasible_set = parameterization.feasible_set
    free = isinstance(feasible_set, RankAtMost)
    if parameter.name != "rank":
        return feasible_set
    if free:
        return parameterization.rank
    if "FeasibleSet" in str(parameter.annotation):
        return feasible_set
    raise _fits_any_matrix(name, parameterization)


def _als(
    function: Solver,
    observations: Observations,
    parameterization: Parameterization,
    options: SolverOptions,
) -> CompletionResult:
    """Minimise the objective of `complete` by alternating least squares."""
    if not isinstance(parameterization.feasible_set, RankAtMost):
        raise _fits_any_matrix("als", parameterization)
    if not (options.penalty > 0 and options.bias_penalty > 0):
        raise OptionError(
            "solver 'als' needs a positive penalty and bias_penalty; got "
            f"penalty={options.penalty!r}, bias_penalty={options.bias_penalty!r}"
        )
    unused = {"loss", "optimizer", "checkpoint", "patience"} & set(options.changed())
    if unused:
        raise OptionError(
            f"solver 'als' takes no {', '.join(sorted(unused))}: leave them at their defaults, or "
            "use solver='gradient'"
        )
    fitted, held_out = training_and_validation(observations, options.validation, options.generator)
    result = function(
        fitted,
        parameterization.rank,
        penalty=options.penalty,
        exponent=0.0,
        bias=options.bias,
        bias_ratio=options.bias_penalty / options.penalty,
        sweeps=options.max_iterations,
        tolerance=options.tolerance,
        validation=held_out,
        generator=options.generator,
        progress=options.progress,
    )
    biases = None if options.bias is None else options.bias_penalty
    return replace(result, problem=ConvexProblem(fitted, options.penalty, biases))


def _fits_any_matrix(name: str, parameterization: Parameterization) -> OptionError:
    return OptionError(
        f"solver {name!r} fits any matrix of a given rank; {parameterization} stays in "
        f"{parameterization.feasible_set}: use Factored, or solver='gradient' or 'frank_wolfe'"
    )


def _named(parameters: Mapping[str, object]) -> str:
    return ", ".join(list(parameters)[2:])
