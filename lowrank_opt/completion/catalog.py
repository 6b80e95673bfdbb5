"""The solvers by name: which of them take a problem, and the table that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar, cast

from lowrank_opt.completion import bayes, solvers
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.solvers import fixed_rank
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.custom import Custom
from lowrank_opt.completion.solvers.gradient import LBFGS
from lowrank_opt.completion.solvers.traits import Solver, Traits
from lowrank_opt.errors import OptionError

S = TypeVar("S")

# The best tried come first, where no solver is named.
_FIRST = (
    "lbfgs",
    "frank_wolfe",
    "als",
    "variational",
    "gibbs",
    "gauss_newton",
    "soft_impute",
    "sgd",
    "riemannian",
    "scaled_gd",
    "singular_value_projection",
    "max_norm",
    "first_order",
)


def _solvers() -> dict[str, type[Solver]]:
    kinds = {_name(kind): kind for kind in _defined() if kind is not Custom}
    return {name: kinds[name] for name in dict.fromkeys((*_FIRST, *kinds))}


def _defined() -> Iterator[type[Solver]]:
    """Yield the dataclasses with a method `solve` that the files of the rooms define."""
    for room in (solvers, fixed_rank, bayes):
        for file in iter_modules(room.__path__, f"{room.__name__}."):
            for kind in vars(import_module(file.name)).values():
                own = isinstance(kind, type) and kind.__module__ == file.name
                if own and is_dataclass(kind) and hasattr(kind, "solve"):
                    yield cast("type[Solver]", kind)


def _name(kind: type) -> str:
    """Return FrankWolfe as frank_wolfe, ScaledGD as scaled_gd and ALS as als."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


# In the order in which `complete` tries them where no solver is named.
SOLVERS: dict[str, type[Solver]] = _solvers()
_OTHER_NAMES = {"gradient": "lbfgs", "bayesian": "gibbs"}


def solver_of(solver: Solver | str) -> Solver:
    """Return a solver as it is; or the one of that name, with its default options.

    Raises
    ------
    OptionError
        If the name is unknown, the solver has an option without a default, or it is none.

    Examples
    --------
    >>> solver_of("frank_wolfe")
    FrankWolfe(gap=0.0001, max_iterations=300)
    """
    if isinstance(solver, str):
        return _made(solver)
    if isinstance(solver, Solver) and not isinstance(solver, type):
        return solver
    raise OptionError(
        "a solver is a name or an object with traits and solve(problem, run); got "
        f"{solver!r}: wrap a function of a problem and a run in lowrank_opt.solvers.Custom"
    )


def _made(name: str) -> Solver:
    known = _OTHER_NAMES.get(name, name)
    if known not in SOLVERS:
        names = ", ".join(map(repr, SOLVERS))
        raise OptionError(f"solver must be {names} or a solver object; got solver={name!r}")
    kind = SOLVERS[known]
    missing = [f.name for f in _fields(kind) if f.default is MISSING]
    if missing:
        raise OptionError(
            f"solver {name!r} needs {', '.join(missing)}; got a name: pass "
            f"lowrank_opt.solvers.{kind.__name__}({missing[0]}=...)"
        )
    return kind()


def with_options(solver: S, **given: object) -> S:
    """Return a copy of a solver with those options that are not None.

    Raises
    ------
    OptionError
        If the solver has no such option.

    Examples
    --------
    >>> from lowrank_opt.solvers import FrankWolfe
    >>> with_options(FrankWolfe(), max_iterations=5, tolerance=None)
    FrankWolfe(gap=0.0001, max_iterations=5)
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return solver
    known = option_names(solver)
    unknown = sorted(changes.keys() - known)
    if unknown:
        raise OptionError(
            f"{type(solver).__name__} has the options {', '.join(known) or 'none'}; got "
            f"{', '.join(unknown)}: leave it out, or choose another solver"
        )
    assert is_dataclass(solver), "it has fields"
    assert not isinstance(solver, type), "it was made"
    return replace(solver, **changes)


def option_names(solver: object) -> list[str]:
    """Return the names of a solver's own options."""
    return [f.name for f in _fields(solver)]


def _fields(solver: object) -> tuple[Field[object], ...]:
    return fields(solver) if is_dataclass(solver) else ()


def check_fits(solver: Solver, problem: CompletionProblem, run: Run | None = None) -> None:
    """Raise OptionError, naming the solvers that would do, unless a solver takes a problem."""
    misfits = list(solver.traits.misfits(problem, run))
    if misfits:
        names = list(solvers_for(problem, run))
        would = (
            f"one of {', '.join(names)} would take it" if names else "no solver takes it as it is"
        )
        raise OptionError(f"{type(solver).__name__} {'; it '.join(misfits)}: {would}")


def solvers_for(problem: CompletionProblem, run: Run | None = None) -> Iterator[str]:
    """Yield the names of the solvers that take a problem, in the order of the table.

    Examples
    --------
    >>> from lowrank_opt.observations import Observations
    >>> from lowrank_opt.sets import SchattenBall
    >>> observed = Observations([0, 1], [0, 1], [3.0, 1.0], shape=(2, 2))
    >>> list(solvers_for(CompletionProblem(observed, SchattenBall(1, radius=2.0, rank=2))))
    ['frank_wolfe', 'variational', 'sgd']
    """
    for name, kind in SOLVERS.items():
        if not any(kind.traits.misfits(problem, run)):
            yield name


def default_solver(problem: CompletionProblem, run: Run) -> Solver:
    """Return the first solver that takes a problem.

    Raises
    ------
    OptionError
        If there is none.
    """
    name = next(solvers_for(problem, run), None)
    if name is None:
        check_fits(LBFGS(), problem, run)
    assert name is not None, "L-BFGS is one of the solvers"
    return _made(name)


def markdown() -> str:
    """Return the table "which solver for which problem", as the documentation shows it."""
    head = (
        "| solver | name | model | loss | biases | penalty | goes on from | certificate "
        "| devices | processes |\n"
        "| :-- | :-- | :-- | :-- | :-- | :-- | :-- | :-- | :-- | :-- |\n"
    )
    return head + "".join(_line(name, kind) for name, kind in SOLVERS.items())


def _line(name: str, kind: type[Solver]) -> str:
    traits: Traits = kind.traits
    able = {"a start": traits.start, "a checkpoint": traits.checkpoint}
    cells = (
        f"`{kind.__name__}`",
        f'`"{name}"`',
        ", ".join(traits.sets),
        traits.losses + (", side information" if traits.side else ""),
        " or ".join(traits.biases),
        {"no": "its own" if not traits.bias_penalty else "biases only"}.get(
            traits.penalty, traits.penalty
        ),
        ", ".join(what for what, does in able.items() if does) or "-",
        "where convex" if traits.certificate else "-",
        ", ".join(traits.devices),
        _processes(traits),
    )
    return f"| {' | '.join(cells)} |\n"


def _processes(traits: Traits) -> str:
    if not traits.distributed:
        return "one"
    cut = ("rows", traits.cut), ("columns", traits.cut_columns)
    sides = " and ".join(name for name, has in cut if has)
    return f"many, {sides} cut" if sides else "many"
