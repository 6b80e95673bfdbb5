"""Laws of feasible sets: members, samples, projection, linear oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.calls import call
from lowrank_opt.testing.cases.case import Case
from lowrank_opt.testing.cases.members import MEMBERS
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.laws import set_laws
from lowrank_opt.testing.laws.sets import check_lmo, check_projection
from lowrank_opt.testing.search.counterexample import program_of
from lowrank_opt.testing.search.held import Holding
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.suite import OnFail, Options, check_laws
from lowrank_opt.testing.search.verdict import CheckResult

_START = (FreeParameters("start"),)
_PROGRAM = program_of("check_spectral_set")

SET_LAWS: tuple[Law, ...] = (
    Law(
        "contract",
        "sample() and project() give operators of the shape and dtype asked for.",
        set_laws.contract,
        parameters=_START,
        program=_PROGRAM,
    ),
    Law(
        "membership",
        "contains() is true for members and false beyond the boundary; excess() says by how much.",
        set_laws.membership,
        parameters=_START,
        members=MEMBERS,
        program=_PROGRAM,
    ),
    Law(
        "rank",
        "A matrix of higher rank is outside, however small.",
        set_laws.rank_bound,
        parameters=_START,
        sides=(2, 9),
        program=_PROGRAM,
    ),
    Law(
        "star",
        "Multiples of members between 0 and 1 are members, and rotations change nothing.",
        set_laws.star_shaped,
        parameters=_START,
        members=MEMBERS,
        program=_PROGRAM,
    ),
    Law(
        "samples",
        "sample() gives members, several, and the same ones for the same generator.",
        set_laws.samples,
        parameters=_START,
        program=_PROGRAM,
    ),
    Law(
        "projection",
        check_projection.statement,
        check_projection.body,
        parameters=_START,
        members=MEMBERS,
        free=True,
        program=_PROGRAM,
    ),
    Law(
        "sizes",
        "Projections of huge, tiny and zero operators are finite members.",
        set_laws.sizes,
        parameters=_START,
        program=_PROGRAM,
    ),
    Law(
        "lmo",
        check_lmo.statement,
        check_lmo.body,
        parameters=(FreeParameters("start"), FreeParameters("normal")),
        program=_PROGRAM,
    ),
    Law(
        "lmo_samples",
        "No sample has a smaller inner product with G than lmo(G); lmo(0) is a member.",
        set_laws.minimiser_below_samples,
        parameters=_START,
        program=_PROGRAM,
    ),
    Law(
        "purity",
        "No method writes to its argument, and each repeats.",
        set_laws.arguments_kept,
        parameters=_START,
        program=_PROGRAM,
    ),
)

_ORDERS = {1: ("rank",), 2: ("shape", "rank")}


def check_spectral_set(
    make: FeasibleSet | Callable[..., FeasibleSet],
    *,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    only: Sequence[str] | None = None,
    case: Case | None = None,
) -> list[CheckResult]:
    """Check every law of feasible sets on one.

    Parameters
    ----------
    make : FeasibleSet or callable
        A set; or ``make(rank)`` or ``make(shape, rank)`` that returns one, for shapes and ranks
        that are drawn. Shapes refused with ShapeError or RankError are left out.
    profile : {"quick", "standard", "thorough"}
    dtype : torch.dtype
    seed : int
    expected_failures : mapping from law to reason, optional
    on_fail : {"raise", "collect"}
    only : sequence of str, optional
        Names of the laws to check; all by default.
    case : Case, optional
        Try this one only.

    Returns
    -------
    list of CheckResult

    Raises
    ------
    BrokenLawError
        With the smallest counter-example.
    TargetError
        If an option is not one of its choices, or names no law.

    Notes
    -----
    The singular values that sets of this package, and sets made from them, allow are computed once
    more in NumPy. Of a set derived from `SpectralSet`, its own ``singular_value_excess`` is taken
    at its word, and everything else is checked against it.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt import SchattenBall
    >>> verdicts = check_spectral_set(partial(SchattenBall, 1, 2.0), profile="quick")
    >>> {v.status for v in verdicts}
    {'passed'}
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
    return check_laws(SET_LAWS, set_factory(make), options)


def set_factory(make: FeasibleSet | Callable[..., FeasibleSet]) -> Holding[FeasibleSet]:
    """Return the factory that `SET_LAWS` are tried on."""
    return Holding(make, _builder(make))


def _builder(make: FeasibleSet | Callable[..., FeasibleSet]) -> Callable[..., FeasibleSet]:
    def build(shape: tuple[int, int], rank: int, **options: object) -> FeasibleSet:
        if isinstance(make, FeasibleSet):
            return make
        return call(make, _ORDERS, {"shape": shape, "rank": rank, **options})

    return build
