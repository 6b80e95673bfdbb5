"""Laws of feasible sets: members, samples, projection, linear oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.laws.sets import made, membership, nearest, samples
from lowrank_opt.testing.search.check import AnyLaw, CheckOptions, check
from lowrank_opt.testing.search.verdict import CheckResult

SET_LAWS: tuple[AnyLaw, ...] = (*membership.LAWS, *made.LAWS, *samples.LAWS, *nearest.LAWS)


def check_set(
    make: FeasibleSet | Callable[..., FeasibleSet], **options: Unpack[CheckOptions]
) -> list[CheckResult]:
    """Check every law of feasible sets on one.

    Parameters
    ----------
    make : FeasibleSet or callable
        A set; or ``make(rank)`` or ``make(shape, rank)`` that returns one, for shapes and ranks
        that are drawn. Shapes refused with ShapeError or RankError are left out.
    **options
        ``profile``, ``dtype``, ``seed``, ``on_fail`` and others, as for `check_parameterization`.

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
    >>> verdicts = check_set(partial(SchattenBall, 1, 2.0), profile="quick")
    >>> {v.status for v in verdicts}
    {'passed'}
    """
    return check(SET_LAWS, make, **options)


check_spectral_set = check_set
