"""Laws of completion solvers, on problems with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.sets import FeasibleSet, RankAtMost
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.calls import call
from lowrank_opt.testing.cases.planted import SolverTrial
from lowrank_opt.testing.cases.solver_objects import default_kind, set_of_kind
from lowrank_opt.testing.laws.solvers import optimality, results, traits, units
from lowrank_opt.testing.search.check import AnyLaw, CheckOptions, check
from lowrank_opt.testing.search.verdict import CheckResult

SOLVER_LAWS: tuple[AnyLaw, ...] = (*results.LAWS, *units.LAWS, *optimality.LAWS, *traits.LAWS)


def _rank_at_most(_shape: tuple[int, int], rank: int) -> FeasibleSet:
    return RankAtMost(rank)


_ORDERS = {1: ("rank",), 2: ("shape", "rank")}
_DEFAULTS: dict[str, object] = {"feasible_set": _rank_at_most, "rtol": 0.05}


def check_solver(
    solve: Callable[..., CompletionResult] | Solver,
    *,
    feasible_set: Callable[[tuple[int, int], int], FeasibleSet] = _rank_at_most,
    rtol: float = 0.05,
    **options: Unpack[CheckOptions],
) -> list[CheckResult]:
    r"""Check every law of completion solvers on problems with a known answer.

    The problems are matrices with entries of size one, of rank 1 or 2, with 12 to 18 rows and
    columns, three quarters of which are observed: a solver with a small penalty finds them. Larger
    ones, of ranks up to 5, have the same nuclear norm.

    Parameters
    ----------
    solve : callable or Solver
        A solver of `lowrank_opt.solvers`, or one of your own: the problems, their dtype and device
        are made of its traits. Laws of what it does not declare are skipped.
        Or ``solve(observations, rank)``, or ``solve(observations)``, returns a CompletionResult. If
        it takes a ``generator``, it gets one with a seed.
    feasible_set : callable
        From shape and rank to the set that the operator of a result has to be in.
    rtol : float
        Allowed error of predictions, relative to the root mean square of the entries.
    **options
        ``profile``, ``dtype``, ``seed``, ``on_fail`` and others, as for `check_parameterization`.

    Returns
    -------
    list of CheckResult
        The law of certificates is skipped for results without a convex problem, those of traits
        for a function, which declares none.

    Raises
    ------
    BrokenLawError
        With the smallest counter-example.
    TargetError
        If an option is not one of its choices, or names no law.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt.completion import als
    >>> solve = partial(als, penalty=1e-3, sweeps=200, tolerance=1e-8, bias=None)
    >>> verdicts = check_solver(solve, profile="quick")
    >>> {v.check for v in verdicts if v.status == "passed"} >= {"recovery", "unseen", "weights"}
    True
    """
    if isinstance(solve, Solver):
        options = {**_place(solve), **options}
    return check(SOLVER_LAWS, solver_trial(solve, feasible_set, rtol), **options)


def _place(solver: Solver) -> CheckOptions:
    """Return where a solver can be checked that does not compute in float64 or on the CPU."""
    dtypes, devices = solver.traits.dtypes, solver.traits.devices
    return {
        "dtype": torch.float64 if torch.float64 in dtypes else dtypes[0],
        "device": "cpu" if solver.traits.computes_on("cpu") else devices[0],
    }


def solver_trial(
    solve: Callable[..., CompletionResult] | Solver,
    feasible_set: FeasibleSet | Callable[..., FeasibleSet] | None = None,
    rtol: float = 0.05,
) -> SolverTrial:
    """Return what the laws of solvers are tried on."""
    declared = _rank_at_most if feasible_set is None else feasible_set
    given = {"feasible_set": declared, "rtol": rtol}
    changed = {k: v for k, v in given.items() if v != _DEFAULTS[k]}

    def set_of(shape: tuple[int, int], rank: int) -> FeasibleSet:
        if isinstance(declared, FeasibleSet):
            return declared
        if isinstance(solve, Solver) and declared is _rank_at_most:
            return set_of_kind(default_kind(solve), shape, rank)
        return call(declared, _ORDERS, {"shape": shape, "rank": rank})

    return SolverTrial(solve, set_of, rtol, changed)
