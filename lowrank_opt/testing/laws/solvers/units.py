"""Results in another unit of the values, and from another zero.

In another unit the same problem has as many units of radius and of penalty; beside biases its
values may be shifted. For solver objects, whose problems are made of their traits: what a function
takes for a radius or a penalty is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from lowrank_opt.observations import Observations
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.oracle import Array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.planted import (
    SolverCase,
    difference,
    planted,
    predictions,
    seeded_start,
)
from lowrank_opt.testing.cases.solver_objects import Changes, problem_by_traits, solved_by
from lowrank_opt.testing.laws.solvers.results import near, where_it_computes
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

S = TypeVar("S", bound=Solver)

# Powers of two, which round nothing: squares of values still have one more such factor to go.
_EXPONENTS = {torch.float64: 300, torch.float32: 50}


def _units(trial: SolverCase) -> None:
    first = _entries(trial, 1.0)
    exponent = _EXPONENTS.get(trial.dtype, 10)
    for unit in (2.0**-exponent, 2.0**exponent):
        found = _entries(trial, unit) / unit
        error, allowed = difference(found, first, planted(trial).size), trial.eps**0.5
        expect(
            error <= allowed,
            f"values, radius and penalty in units of {unit:.3g} give predictions that are off by "
            f"{error:.2e} of the entries' size",
        )


def _offsets(trial: SolverCase) -> None:
    solver = _solver_object(trial)
    if "additive" not in solver.traits.biases:
        raise NotApplicable("the solver fits no biases")
    # Half the digits of the values are lost in rounding them.
    offset = 2.0 ** round(-np.log2(trial.eps) / 2)
    changes: Changes = {"bias": "additive", "bias_penalty": 1.0}
    first, found = (_entries(trial, 1.0, shift, **changes) - shift for shift in (0.0, offset))
    near(trial, planted(trial), found, first, f"of values with {offset:.3g} added to them")


def _entries(trial: SolverCase, unit: float, offset: float = 0.0, **changes: object) -> Array:
    """Return all predictions for the planted entries in a unit, shifted."""
    solver, problem = _solver_object(trial), planted(trial)
    obs = problem.observations
    values = obs.values * unit + offset
    moved = Observations(obs.rows, obs.cols, values, obs.shape)
    with seeded_start(trial.seed) as generator:
        asked = problem_by_traits(solver, moved, problem.rank, unit=unit, **changes)  # pyright: ignore[reportArgumentType]
        return predictions(solved_by(_in_unit(solver, unit), asked, generator=generator))


def _solver_object(trial: SolverCase) -> Solver:
    solver = trial.make.solver
    if solver is None:
        raise NotApplicable("a function has radius and penalty inside: pass a solver object")
    return solver


def _in_unit(solver: S, unit: float) -> S:
    """Return the solver with as many units of radius, where that is an option of its own."""
    if not is_dataclass(solver) or "radius" not in {f.name for f in fields(solver)}:
        return solver
    return replace(solver, radius=getattr(solver, "radius") * unit)  # noqa: B009


def _law(name: str, statement: str, body: Callable[[SolverCase], None]) -> Law[SolverCase]:
    return Law(
        name,
        statement,
        where_it_computes(body),
        parameters=(FreeParameters("start"),),
        sides=(8, 11),
        max_rank=2,
        max_examples=1,
        needs=("contract",),
        trial=Trial,
        entry="check_solver",
    )


LAWS = (
    _law("units", "The unit of the values makes no difference.", _units),
    _law(
        "offsets", "Beside biases, a constant added to the values is added to the result.", _offsets
    ),
)
