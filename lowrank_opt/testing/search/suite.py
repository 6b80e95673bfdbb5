"""Laws of one kind of object together: options, verdicts, and the first that is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from lowrank_opt.errors import TargetError
from lowrank_opt.testing.cases.case import Case, Factory
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.profiles import ProfileName, profile_of
from lowrank_opt.testing.search.verdict import BrokenLawError, CheckResult

OnFail: TypeAlias = Literal["raise", "collect"]


@dataclass(frozen=True)
class Options:
    """How to look for counter-examples, and what to do with them.

    Parameters
    ----------
    profile : {"quick", "standard", "thorough"}
    dtype : torch.dtype
    device : torch.device or str
    seed : int
    expected_failures : mapping from law to reason, optional
    on_fail : {"raise", "collect"}
    progress : callable, optional
        Called with each verdict.
    only : sequence of str, optional
        Names of the laws to check; all by default.
    case : Case, optional
        Try this one only.
    """

    profile: ProfileName = "standard"
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    seed: int = 0
    expected_failures: Mapping[str, str] | None = None
    on_fail: OnFail = "raise"
    progress: Callable[[CheckResult], None] | None = None
    only: Sequence[str] | None = None
    case: Case | None = None


def check_laws(laws: Sequence[Law], make: Factory, options: Options) -> list[CheckResult]:
    """Return the verdicts of laws on what a factory makes, or raise at the first broken one.

    Raises
    ------
    BrokenLawError
        If a law is broken and failures are not collected.
    TargetError
        If an option is not one of its choices, or names no law.
    """
    known = dict(options.expected_failures or {})
    _check_options(laws, options)
    results: list[CheckResult] = []
    for law in laws:
        if options.only is not None and law.name not in options.only:
            continue
        result = judged(_verdict(law, make, options), known)
        if options.progress is not None:
            options.progress(result)
        if result.status == "failed" and options.on_fail == "raise":
            raise BrokenLawError(law.name, result.message, result.case, result.code)
        results.append(result)
    return results


def _verdict(law: Law, make: Factory, options: Options) -> CheckResult:
    return law.verdict(
        make,
        profile=options.profile,
        dtype=options.dtype,
        device=options.device,
        seed=options.seed,
        case=options.case,
    )


def judged(result: CheckResult, known: Mapping[str, str]) -> CheckResult:
    """Return a verdict in the light of the laws that are known not to hold, and why."""
    reason = known.get(result.check)
    if reason is None or result.status == "skipped":
        return result
    if result.status == "failed":
        return replace(result, status="expected_failure", message=f"{reason} ({result.message})")
    return replace(result, message=f"holds, although expected to fail: {reason}")


def _check_options(laws: Sequence[Law], options: Options) -> None:
    profile_of(options.profile)
    names = [law.name for law in laws]
    unknown = sorted(set(options.expected_failures or {}) - set(names))
    if unknown:
        raise TargetError(f"expected_failures must name laws, {names}; got {unknown}")
    strange = sorted(set(options.only or ()) - set(names))
    if strange:
        raise TargetError(f"only must name laws, {names}; got {strange}")
    if options.on_fail not in ("raise", "collect"):
        raise TargetError(f"on_fail must be 'raise' or 'collect'; got {options.on_fail!r}")
