"""The one check behind all entry points: every law of a kind, one verdict each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, TypedDict

import torch

from lowrank_opt.errors import OptionError
from lowrank_opt.testing.cases.case import Case
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName, profile_of
from lowrank_opt.testing.search.simpler import same_kind
from lowrank_opt.testing.search.verdict import BrokenLawError, CheckResult

OnFail: TypeAlias = Literal["raise", "collect"]
AnyLaw: TypeAlias = Law[Any]


class CheckOptions(TypedDict, total=False):
    """How to look for counter-examples, and what to do with them: see `check_parameterization`."""

    profile: ProfileName
    dtype: torch.dtype
    device: torch.device | str
    seed: int
    expected_failures: Mapping[str, str] | None
    on_fail: OnFail
    progress: Callable[[CheckResult], None] | None
    only: Sequence[str] | None
    case: Case | None


def check(
    laws: Sequence[AnyLaw],
    make: object,
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
    """Return the verdicts of laws on one object, or raise at the first broken one.

    Raises
    ------
    BrokenLawError
        If a law is broken and failures are not collected.
    OptionError
        If an option is not one of its choices, or names no law.
    """
    known = dict(expected_failures or {})
    _check_options(laws, profile, known, on_fail, only)
    results: list[CheckResult] = []
    needs = {law.name: law.needs for law in laws}
    for law in laws:
        if only is not None and law.name not in only:
            continue
        result = law.verdict(
            make, profile=profile, dtype=dtype, device=device, seed=seed, case=case
        )
        result = without_cause(judged(result, known), results, needs)
        if progress is not None:
            progress(result)
        if result.status == "failed" and on_fail == "raise":
            raise BrokenLawError(law.name, result.message, result.case, result.code)
        results.append(result)
    return results


def judged(result: CheckResult, known: Mapping[str, str]) -> CheckResult:
    """Return a verdict in the light of the laws that are known not to hold, and why."""
    reason = known.get(result.check)
    if reason is None or result.status == "skipped":
        return result
    if result.status == "failed":
        return replace(result, status="expected_failure", message=f"{reason} ({result.message})")
    return replace(result, message=f"holds, although expected to fail: {reason}")


def without_cause(
    result: CheckResult, before: Sequence[CheckResult], needs: Mapping[str, tuple[str, ...]]
) -> CheckResult:
    """Return a verdict as skipped if what is broken has a line already: one cause, one line.

    The cause is a broken law that this one needs, or one under which the same was found.
    """
    if result.status != "failed":
        return result
    wanted = {*needs.get(result.check, ())}
    wanted |= {further for name in wanted for further in needs.get(name, ())}
    for cause in before:
        broken = cause.status in ("failed", "expected_failure")
        same = cause.status == "failed" and same_kind(cause.message, result.message)
        if (broken and cause.check in wanted) or same:
            message = f"not judged while {cause.check!r} is broken ({result.message})"
            return replace(result, status="skipped", message=message, case=None, code="")
    return result


def _check_options(
    laws: Sequence[AnyLaw],
    profile: ProfileName,
    known: Mapping[str, str],
    on_fail: str,
    only: Sequence[str] | None,
) -> None:
    profile_of(profile)
    names = [law.name for law in laws]
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise OptionError(f"expected_failures must name laws, {names}; got {unknown}")
    strange = sorted(set(only or ()) - set(names))
    if strange:
        raise OptionError(f"only must name laws, {names}; got {strange}")
    if on_fail not in ("raise", "collect"):
        raise OptionError(f"on_fail must be 'raise' or 'collect'; got {on_fail!r}")
