"""A law: a statement about every object of a kind, and how to look for a counter-example."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

from lowrank_opt.testing.cases.case import Case, Subject, Trial
from lowrank_opt.testing.cases.members import Member
from lowrank_opt.testing.cases.parameters import TAME, FreeParameters
from lowrank_opt.testing.search.counterexample import program
from lowrank_opt.testing.search.profiles import ProfileName, profile_of
from lowrank_opt.testing.search.search import Finding, Scene, Search
from lowrank_opt.testing.search.simpler import simpler_cases
from lowrank_opt.testing.search.verdict import BrokenLawError, CheckResult

T = TypeVar("T", bound=Trial[Any])

# Sides at which programs take other branches: past a block of sixteen.
_LARGE = (17, 40)
# How many simpler cases are tried once a law is broken.
_SIMPLER = 60


@dataclass(frozen=True)
class Law(Generic[T]):
    """A statement about every object of a kind; calling it checks one.

    Parameters
    ----------
    name : str
    statement : str
        The law in one sentence.
    body : callable
        Takes a trial, the user's object at one case. Raises `Violation` where the law is broken,
        and `NotApplicable` where it asks for an ability that is not claimed; any other exception
        counts as a violation.
    show : str
        Python that shows what the law compares, for counter-examples; ``$m``, ``$n``, ``$dtype``,
        ``$seed`` and ``$fresh`` (the construction of another module) are replaced. The names
        ``make`` and ``case`` are there, and ``W``, the module.
    parameters : tuple of FreeParameters
        Those to try, from simple to hostile.
    members : tuple of Member
        Members of the feasible set to try, each with the first of `parameters`.
    free : bool
        Whether to try parameters and members drawn at will too, and some at larger shapes.
    sides : tuple of int, optional
        Bounds on m and n, in place of the profile's.
    max_rank : int, optional
    max_examples : int, optional
        Bound on the profile's number of cases, for laws that take long.
    needs : tuple of str
        Laws without which this one says nothing: where one of them is broken, that is reported.
    trial : callable
        From what the user passed, a case, a dtype and a device to the trial.
    entry : str
        The function of `lowrank_opt.testing` that checks this kind of object.

    Examples
    --------
    >>> from functools import partial
    >>> from lowrank_opt import NBLoRA
    >>> from lowrank_opt.testing import expect
    >>> def positive(subject):
    ...     expect(subject.module().factors().scale.min() >= 0, "a negative scale")
    >>> check_scale = Law("scale", "The scale is not negative.", positive)
    >>> check_scale(partial(NBLoRA, radius=2.0)).status
    'passed'
    """

    name: str
    statement: str
    body: Callable[[T], None]
    show: str = ""
    parameters: tuple[FreeParameters, ...] = TAME
    members: tuple[Member, ...] = ()
    free: bool = False
    sides: tuple[int, int] | None = None
    max_rank: int | None = None
    max_examples: int | None = None
    needs: tuple[str, ...] = ()
    trial: Callable[[Any, Case, torch.dtype, torch.device], T] = Subject  # pyright: ignore[reportAssignmentType]
    entry: str = "check_parameterization"

    def __call__(
        self,
        make: object,
        *,
        profile: ProfileName = "standard",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        case: Case | None = None,
    ) -> CheckResult:
        """Look for a counter-example; return the verdict if there is none.

        Parameters
        ----------
        make : object
            What is checked. For laws of parameterizations, ``make(shape, rank)`` returns one: a
            class, a partial, a function. If it takes ``dtype`` and ``device`` they are passed by
            name, else the module is converted.
        profile : {"quick", "standard", "thorough"}
        dtype : torch.dtype
        device : torch.device or str
        seed : int
            Chooses the examples; the same seed repeats the search.
        case : Case, optional
            Try this one only.

        Returns
        -------
        CheckResult
            Passed, or skipped with the reason.

        Raises
        ------
        BrokenLawError
            With the smallest counter-example found.
        ShapeError
            If the factory refuses every shape that is tried.
        """
        result = self.verdict(
            make, profile=profile, dtype=dtype, device=device, seed=seed, case=case
        )
        if result.status == "failed":
            raise BrokenLawError(self.name, result.message, result.case, result.code)
        return result

    def verdict(
        self,
        make: object,
        *,
        profile: ProfileName = "standard",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        case: Case | None = None,
    ) -> CheckResult:
        """Return the verdict, a broken law too; arguments as for a call.

        Raises
        ------
        ShapeError
            If the factory refuses every shape that is tried.
        """
        start, where = time.perf_counter(), torch.device(device)
        search = Search(self.body, lambda c: self.trial(make, c, dtype, where), seed=seed)
        if case is not None:
            search.once(case)
        else:
            all(search.explore(scene, self.name) for scene in self._scenes(profile, dtype))
            self._simplify(search)
        finding = search.finding
        return CheckResult(
            self.name,
            "failed" if finding else "passed" if search.tried else "skipped",
            finding.found if finding else "" if search.tried else search.refusal,
            finding.trial.case if finding else None,
            self._program(finding) if finding else "",
            examples=search.tried,
            seconds=time.perf_counter() - start,
            seed=seed,
            statement=self.statement,
        )

    def _program(self, finding: Finding[T]) -> str:
        show = finding.show or self.show
        return program(self.entry, self.name, finding.trial, finding.found, show)

    def _simplify(self, search: Search[T]) -> None:
        if search.finding is None:
            return
        smallest = self.sides[0] if self.sides else 1
        cases = simpler_cases(search.finding.trial.case, smallest=smallest)
        search.simplify(islice(cases, self.max_examples or _SIMPLER))

    def _scenes(self, profile: ProfileName, dtype: torch.dtype) -> Iterator[Scene]:
        chosen = profile_of(profile)
        low, high = self.sides or (1, chosen.max_side)
        count = min(chosen.examples, self.max_examples or chosen.examples)
        for values, member in self._listed():
            if values.fits(dtype):
                name = f"{values} {member}"
                yield Scene(name, (low, high), count, dtype, self.max_rank, values, member)
        if self.free:
            drawn = self.parameters[0] if self.members else None
            wide, large = (low, 2 * high), _LARGE
            yield Scene("free", wide, chosen.free_examples, dtype, self.max_rank, drawn)
            yield Scene("large", large, chosen.large_examples, dtype, self.max_rank, drawn)

    def _listed(self) -> Iterator[tuple[FreeParameters, Member]]:
        if self.members:
            yield from ((self.parameters[0], member) for member in self.members)
        else:
            yield from ((values, Member()) for values in self.parameters)
