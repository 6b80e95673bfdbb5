"""All laws at once: for a program, and as parameters of a pytest test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import torch

from lowrank_opt.testing.cases.case import Case, Factory
from lowrank_opt.testing.laws.maps import (
    agreement,
    derivatives,
    escape,
    gradients,
    inverse,
    membership,
    precision,
    promises,
    slopes,
    zero_start,
)
from lowrank_opt.testing.laws.modules import calls, cost, generators, journey, purity
from lowrank_opt.testing.laws.sets import nearest
from lowrank_opt.testing.search.check import AnyLaw, OnFail, check
from lowrank_opt.testing.search.describe import describe
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.verdict import CheckResult

BoundCheck: TypeAlias = Callable[[Factory], CheckResult]

# In the order in which a reader wants to hear of them: a law comes after those that it needs.
LAWS: tuple[AnyLaw, ...] = (
    *membership.LAWS[:3],
    *purity.LAWS,
    *generators.LAWS,
    *agreement.LAWS[:1],
    *gradients.LAWS,
    *calls.LAWS,
    *slopes.LAWS,
    *derivatives.LAWS,
    *escape.LAWS,
    *precision.LAWS,
    *zero_start.LAWS,
    *inverse.LAWS,
    *promises.LAWS,
    *agreement.LAWS[1:],
    *journey.LAWS,
    *cost.LAWS,
    *membership.LAWS[3:],
    *nearest.DECLARED,
)


def check_parameterization(
    make: Factory,
    *,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    progress: Callable[[CheckResult], None] | None = None,
    only: Sequence[str] | None = None,
    case: Case | None = None,
) -> list[CheckResult]:
    """Check every law on a parameterization.

    Parameters
    ----------
    make : callable
        ``make(shape, rank)`` returns a parameterization: a class, a `functools.partial`, a
        function. If it takes ``dtype`` and ``device`` they are passed by name, else the module is
        converted. Shapes that it refuses with ShapeError or RankError are left out.
    profile : {"quick", "standard", "thorough"}
        How many cases and how large ones.
    dtype : torch.dtype
    device : torch.device or str
    seed : int
        Chooses the examples; the same seed repeats them, and finds the same counter-example.
    expected_failures : mapping from law to reason, optional
        Laws that are known not to hold, e.g. ``{"certificate": "not proved yet"}``.
    on_fail : {"raise", "collect"}
        Raise at the first broken law, or return all verdicts.
    progress : callable, optional
        Called with each verdict as soon as it is there.
    only : sequence of str, optional
        Names of the laws to check; all by default.
    case : Case, optional
        Try this one only.

    Returns
    -------
    list of CheckResult
        One for each law; laws about abilities that are not claimed are skipped with a reason, and
        so are laws that say nothing while one that they need is broken.

    Raises
    ------
    BrokenLawError
        An AssertionError whose message names the law, what was found, and the smallest
        counter-example as runnable code.
    TargetError
        If an option is not one of its choices, or an expected failure names no law.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> verdicts = check_parameterization(Factored, profile="quick")
    >>> [v.check for v in verdicts if v.status == "skipped"]
    ['escape', 'lmo']
    """
    return check(
        LAWS,
        make,
        profile=profile,
        dtype=dtype,
        device=device,
        seed=seed,
        expected_failures=expected_failures,
        on_fail=on_fail,
        progress=progress,
        only=only,
        case=case,
    )


def parametrize_with_checks(
    makes: Iterable[Factory],
    *,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    expected_failures: Callable[[Factory], Mapping[str, str]] | None = None,
) -> pytest.MarkDecorator:
    """Return a decorator that gives a pytest test every pair ``(make, check)``.

    A law about an ability that is not claimed skips its test with the reason.

    Parameters
    ----------
    makes : iterable of callables
        As for `check_parameterization`.
    profile, dtype, device
        As for `check_parameterization`.
    expected_failures : callable, optional
        From a factory to the laws that it is known to break, with reasons: marked ``xfail``;
        pytest's option ``xfail_strict`` says what to do with one that holds after all.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt import Factored, NBLoRA
    >>> @parametrize_with_checks([Factored, partial(NBLoRA, radius=3.0)])
    ... def test_laws(make, check):
    ...     check(make)
    """
    parameters = [
        _parameter(make, law, _Check(law, profile, dtype, device), dict(known))
        for make in makes
        for known in [expected_failures(make) if expected_failures else {}]
        for law in LAWS
    ]
    return pytest.mark.parametrize(("make", "check"), parameters)


@dataclass(frozen=True)
class _Check:
    """A law with its options, for pytest: skips where the law does not apply."""

    law: AnyLaw
    profile: ProfileName
    dtype: torch.dtype
    device: torch.device | str

    def __call__(self, make: Factory) -> CheckResult:
        result = self.law(make, profile=self.profile, dtype=self.dtype, device=self.device)
        if result.status == "skipped":
            pytest.skip(result.message)
        return result

    def __repr__(self) -> str:
        return f"check_{self.law.name}"


def _parameter(make: Factory, law: AnyLaw, check: _Check, known: Mapping[str, str]) -> object:
    # Strict or not as pytest's option xfail_strict says.
    marks = [pytest.mark.xfail(reason=known[law.name])] if law.name in known else []
    return pytest.param(make, check, id=f"{describe(make)}-{law.name}", marks=marks)
