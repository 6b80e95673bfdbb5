"""What a check says: a result, or an error that carries the smallest counter-example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lowrank_opt.testing.cases.case import Case

Status: TypeAlias = Literal["passed", "skipped", "failed", "expected_failure"]


class BrokenLawError(AssertionError):
    """A law does not hold; the message has what was found and runnable code for it.

    Attributes
    ----------
    law : str
        Name of the law.
    found : str
        One sentence with numbers.
    case : Case or None
        The smallest counter-example found.
    code : str
        Python that shows it.
    """

    def __init__(self, law: str, found: str, case: Case | None, code: str) -> None:
        super().__init__(law, found, case, code)
        self.law: str
        self.found: str
        self.case: Case | None
        self.code: str
        self.law, self.found, self.case, self.code = law, found, case, code

    def __str__(self) -> str:
        lines = "\n".join(f"    {line}" for line in self.code.splitlines())
        return f"the law {self.law!r} is broken: {self.found}\n  smallest counter-example:\n{lines}"


class Violation(Exception):  # noqa: N818 (a finding on its way to a BrokenLawError)
    """Raised by the body of a law: what was found at one case.

    Parameters
    ----------
    found : str
        One sentence with numbers.
    show : str
        A template of Python that shows it, in place of the law's; see `Law`.
    """

    def __init__(self, found: str, show: str = "") -> None:
        super().__init__(found)
        self.show = show


class NotApplicable(Exception):  # noqa: N818 (no error: the law does not speak of this case)
    """Raised by the body of a law that asks for an ability the module does not claim."""


def expect(holds: bool, found: str, show: str = "") -> None:
    """Raise `Violation` with a sentence unless a condition holds."""
    if not holds:
        raise Violation(found, show)


@dataclass(frozen=True)
class CheckResult:
    """The verdict of one check.

    Attributes
    ----------
    check : str
        Name of the law.
    status : {"passed", "skipped", "failed", "expected_failure"}
    message : str
        What was found, or why the law does not apply; empty if it passed.
    case : Case or None
        The smallest counter-example.
    code : str
        Python that shows the counter-example.
    examples : int
        Number of cases tried.
    seconds : float
    seed : int
        Repeats the search.
    statement : str
        The law in one sentence.
    """

    check: str
    status: Status
    message: str = ""
    case: Case | None = None
    code: str = ""
    examples: int = 0
    seconds: float = 0.0
    seed: int = 0
    statement: str = ""

    def __str__(self) -> str:
        tail = f": {self.message}" if self.message else ""
        return f"{self.check}: {self.status} ({self.examples} examples){tail}"
