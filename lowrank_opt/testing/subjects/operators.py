"""Laws of operators: what the factor triple says, however the matrix is asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.testing.cases.case import Case, Factory
from lowrank_opt.testing.cases.parameters import MODERATE, TAME, FreeParameters
from lowrank_opt.testing.laws import operator_laws
from lowrank_opt.testing.laws.maps.agreement import check_agreement
from lowrank_opt.testing.search.counterexample import program_of
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.suite import OnFail, Options, check_laws
from lowrank_opt.testing.search.verdict import CheckResult

_PROGRAM = program_of("check_operator")
_HOSTILE = (
    *MODERATE,
    *(FreeParameters("normal", (size,)) for size in (1e8, 1e-30)),
    FreeParameters("mixed_columns"),
    FreeParameters("zero_columns"),
)

OPERATOR_LAWS: tuple[Law, ...] = (
    Law(
        "triple",
        "The matrix is left diag(scale) right^T of the triple, in its shape and dtype.",
        operator_laws.triple,
        parameters=_HOSTILE,
        program=_PROGRAM,
    ),
    Law(
        "agreement",
        check_agreement.statement,
        check_agreement.body,
        parameters=_HOSTILE,
        program=_PROGRAM,
    ),
    Law(
        "singular_values",
        "Singular values and norms are those of the dense matrix.",
        operator_laws.values,
        parameters=_HOSTILE,
        free=False,
        program=_PROGRAM,
    ),
    Law(
        "truncation",
        "thin_svd() is an SVD of the matrix; truncate(k) is a nearest matrix of rank k.",
        operator_laws.factors,
        parameters=_HOSTILE,
        program=_PROGRAM,
    ),
    Law(
        "algebra",
        "Sums, differences, multiples, transposes and copies are those of matrices.",
        operator_laws.algebra,
        parameters=TAME,
        program=_PROGRAM,
    ),
    Law(
        "gradients",
        "Gradients of products and entries are those of the dense formula.",
        operator_laws.slopes,
        parameters=(FreeParameters("normal"),),
        program=_PROGRAM,
    ),
    Law(
        "never_dense",
        "Products, entries, norms and truncation allocate no m x n numbers.",
        operator_laws.never_dense,
        parameters=(FreeParameters("normal"),),
        sides=(80, 97),
        max_rank=3,
        max_examples=2,
        program=_PROGRAM,
    ),
    Law(
        "purity",
        "No method writes to the factors, and each repeats.",
        operator_laws.purity,
        parameters=TAME,
        program=_PROGRAM,
    ),
)


class _Triple(Parameterization):
    """The triple from which an operator is made, as parameters."""

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        make: Callable[..., LowRankOperator],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(shape, rank)
        sizes = {"left": (shape[0], rank), "scale": (rank,), "right": (shape[1], rank)}
        for name, size in sizes.items():
            values = torch.randn(size, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(values))
        self._make = make

    def factors(self) -> LowRankOperator:
        parts = (self.get_parameter(name) for name in ("left", "scale", "right"))
        return self._make(*parts)


class _Given(Parameterization):
    """An operator that is there already."""

    def __init__(self, shape: tuple[int, int], rank: int, op: LowRankOperator) -> None:
        super().__init__(shape, rank)
        self.op = op

    def factors(self) -> LowRankOperator:
        return self.op


class _Factory:
    """A factory of modules whose factors are the operator to be checked."""

    def __init__(self, make: LowRankOperator | Callable[..., LowRankOperator]) -> None:
        self.make = make

    def __call__(
        self, shape: tuple[int, int], rank: int, *, dtype: torch.dtype, device: torch.device
    ) -> Parameterization:
        make = self.make
        if isinstance(make, LowRankOperator):
            return _Given(shape, rank, make)
        if _number_of_arguments(make) == 2:
            return _Given(shape, rank, make(shape, rank).to(dtype=dtype, device=device))
        return _Triple(shape, rank, make, dtype=dtype, device=device)


def check_operator(
    make: LowRankOperator | Callable[..., LowRankOperator],
    *,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    only: Sequence[str] | None = None,
    case: Case | None = None,
) -> list[CheckResult]:
    """Check every law of operators: products, entries, norms, truncation, algebra, gradients.

    Parameters
    ----------
    make : LowRankOperator or callable
        ``make(left, scale, right)``, as a class derived from `LowRankOperator`; or
        ``make(shape, rank)``; or one operator, which is checked as it is, in its own dtype.
    profile, dtype, seed, expected_failures, on_fail, only, case
        As for `check_spectral_set`.

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
    given = make if isinstance(make, LowRankOperator) else None
    options = Options(
        profile=profile,
        dtype=dtype if given is None else given.dtype,
        seed=seed,
        expected_failures=expected_failures,
        on_fail=on_fail,
        only=only,
        case=case if given is None else Case(given.shape, min(given.rank, *given.shape)),
    )
    laws = [law for law in OPERATOR_LAWS if given is None or law.name != "never_dense"]
    return check_laws(laws, operator_factory(make), options)


def operator_factory(make: LowRankOperator | Callable[..., LowRankOperator]) -> Factory:
    """Return the factory that `OPERATOR_LAWS` are tried on."""
    return _Factory(make)


def _number_of_arguments(make: Callable[..., LowRankOperator]) -> int:
    parameters = inspect.signature(make).parameters.values()
    return sum(p.default is inspect.Parameter.empty and p.kind < 2 for p in parameters)
