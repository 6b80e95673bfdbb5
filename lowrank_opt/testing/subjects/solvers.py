"""Laws of completion solvers, on problems with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.sets import FeasibleSet, RankAtMost
from lowrank_opt.testing.cases.case import Case
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.planted import SolverTrial
from lowrank_opt.testing.laws import solver_laws
from lowrank_opt.testing.laws.certificate_laws import certificate
from lowrank_opt.testing.search.counterexample import program_of
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.suite import OnFail, Options, check_laws
from lowrank_opt.testing.search.verdict import CheckResult

_BODIES = (
    ("contract", "A result, finite, and nothing else is changed.", solver_laws.contract),
    ("recovery", "A planted matrix of low rank is found from exact entries.", solver_laws.recovery),
    ("feasibility", "The result is in the declared set.", solver_laws.feasibility),
    ("permutations", "Permuting rows and columns permutes the result.", solver_laws.permutations),
    ("transposition", "Transposing the problem transposes the result.", solver_laws.transposition),
    ("order", "The order of the entries does not matter.", solver_laws.order),
    ("weights", "Entries of weight zero count for nothing.", solver_laws.weights),
    ("unseen", "Rows and columns without entries are predicted, finitely.", solver_laws.unseen),
    ("repetition", "The same generator gives the same result.", solver_laws.repetition),
    ("certificate", "No feasible matrix is better than the certificate allows.", certificate),
)

SOLVER_LAWS: tuple[Law, ...] = tuple(
    Law(
        name,
        statement,
        body,
        parameters=(FreeParameters("start"),),
        sides=(12, 18),
        max_rank=2,
        max_examples=3,
        program=program_of("check_solver"),
    )
    for name, statement, body in _BODIES
)


def _rank_at_most(_shape: tuple[int, int], rank: int) -> FeasibleSet:
    return RankAtMost(rank)


def check_solver(
    solve: Callable[..., CompletionResult],
    *,
    feasible_set: Callable[[tuple[int, int], int], FeasibleSet] = _rank_at_most,
    rtol: float = 0.05,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    only: Sequence[str] | None = None,
    case: Case | None = None,
) -> list[CheckResult]:
    r"""Check every law of completion solvers on problems with a known answer.

    The problems are matrices with entries of size one, of rank 1 or 2, with 12 to 18 rows and
    columns, three quarters of which are observed: a solver with a small penalty finds them.

    Parameters
    ----------
    solve : callable
        ``solve(observations, rank)``, or ``solve(observations)``, returns a CompletionResult. If
        it takes a ``generator``, it gets one with a seed.
    feasible_set : callable
        From shape and rank to the set that the operator of a result has to be in.
    rtol : float
        Allowed error of predictions, relative to the root mean square of the entries.
    profile, dtype, seed, expected_failures, on_fail, only, case
        As for `check_spectral_set`.

    Returns
    -------
    list of CheckResult
        The law of certificates is skipped for results without a convex problem.

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
    >>> [v.check for v in verdicts if v.status == "skipped"]
    ['certificate']
    """
    options = Options(
        profile=profile,
        dtype=dtype,
        seed=seed,
        expected_failures=expected_failures,
        on_fail=on_fail,
        only=only,
        case=case,
    )
    return check_laws(SOLVER_LAWS, SolverTrial(solve, feasible_set, rtol), options)
