"""Laws of operators: what the factor triple says, however the matrix is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Case
from lowrank_opt.testing.laws.operators import matrix, slopes
from lowrank_opt.testing.search.check import AnyLaw, CheckOptions, check
from lowrank_opt.testing.search.verdict import CheckResult

OPERATOR_LAWS: tuple[AnyLaw, ...] = (*matrix.LAWS, *slopes.LAWS)


def check_operator(
    make: LowRankOperator | Callable[..., LowRankOperator], **options: Unpack[CheckOptions]
) -> list[CheckResult]:
    """Check every law of operators: products, entries, norms, truncation, algebra, gradients.

    Parameters
    ----------
    make : LowRankOperator or callable
        ``make(left, scale, right)``, as a class derived from `LowRankOperator`; or
        ``make(shape, rank)``; or one operator, which is checked as it is, in its own dtype.
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

    Examples
    --------
    >>> from lowrank_opt import LowRankOperator
    >>> {v.status for v in check_operator(LowRankOperator, profile="quick")}
    {'passed'}
    """
    if not isinstance(make, LowRankOperator):
        return check(OPERATOR_LAWS, make, **options)
    options["dtype"], options["device"] = make.dtype, make.device
    options["case"] = Case(make.shape, min(make.rank, *make.shape))
    # The matrix may be too small for the count of allocations.
    return check([law for law in OPERATOR_LAWS if law.name != "never_dense"], make, **options)
