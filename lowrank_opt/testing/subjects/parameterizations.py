"""All laws at once: for a program, and as parameters of a pytest test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import torch

from lowrank_opt.testing import laws
from lowrank_opt.testing.cases.case import Factory
from lowrank_opt.testing.search.describe import describe
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName
from lowrank_opt.testing.search.suite import OnFail, Options, check_laws, judged
from lowrank_opt.testing.search.verdict import CheckResult

BoundCheck: TypeAlias = Callable[[Factory], CheckResult]

# In the order in which a reader wants to hear of them.
LAWS: tuple[Law, ...] = (
    laws.check_contract,
    laws.check_membership,
    laws.check_escape,
    laws.check_rank,
    laws.check_agreement,
    laws.check_precision,
    laws.check_dtype,
    laws.check_smoothness,
    laws.check_zero_start,
    laws.check_section,
    laws.check_completeness,
    laws.check_purity,
    laws.check_copies,
    laws.check_in_place,
    laws.check_never_dense,
    laws.check_merge,
    laws.check_certificate,
    laws.check_projection,
    laws.check_lmo,
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

    Returns
    -------
    list of CheckResult
        One for each law; laws about abilities that are not claimed are skipped with a reason.

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
    options = Options(
        profile=profile,
        dtype=dtype,
        device=device,
        seed=seed,
        expected_failures=expected_failures,
        on_fail=on_fail,
        progress=progress,
    )
    return check_laws(LAWS, make, options)


def judge(
    law: Law,
    make: Factory,
    known: Mapping[str, str],
    *,
    profile: ProfileName = "standard",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> CheckResult:
    """Return the verdict of one law, given the laws that are known not to hold and why."""
    result = law.verdict(make, profile=profile, dtype=dtype, device=device, seed=seed)
    return judged(result, known)


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

    law: Law
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


def _parameter(make: Factory, law: Law, check: _Check, known: Mapping[str, str]) -> object:
    # Strict or not as pytest's option xfail_strict says.
    marks = [pytest.mark.xfail(reason=known[law.name])] if law.name in known else []
    return pytest.param(make, check, id=f"{describe(make)}-{law.name}", marks=marks)
