"""The search for a counter-example: Hypothesis draws and shrinks, a fixed seed repeats.

1. The cases of a scene are drawn. They depend on the scene, the law and the seed, never on what is
   checked, and are remembered.
2. Each is tried, in a plain loop: Hypothesis would take longer than most laws. For those that a
   factory refuses others are drawn.
3. Only where a case breaks the law, Hypothesis goes through the scene again and shrinks the first
   that does.
4. What it found is replaced by the simplest case with the same finding (`simpler_cases`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from lowrank_opt.errors import ShapeError
from lowrank_opt.testing.cases.case import Case, RefusedCase, Trial, seeded_elsewhere
from lowrank_opt.testing.cases.members import Member
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.strategies import free_parameters, seeds, shapes_and_ranks, targets
from lowrank_opt.testing.search.simpler import same_kind
from lowrank_opt.testing.search.verdict import NotApplicable, Violation

T = TypeVar("T", bound=Trial[Any])

# How many times as many cases are drawn where some are refused, then where most are.
_MORE = (3, 10)


@dataclass(frozen=True)
class Scene:
    """Cases of one kind.

    Parameters
    ----------
    name : str
        Seeds the search.
    sides : tuple of int
        Smallest and largest number of rows and of columns.
    examples : int
        How many are tried.
    dtype : torch.dtype
        Which parameters there are to draw.
    max_rank : int, optional
    parameters : FreeParameters, optional
        Those of every case; drawn by default.
    member : Member, optional
        The target of every case; drawn by default.
    """

    name: str
    sides: tuple[int, int]
    examples: int
    dtype: torch.dtype
    max_rank: int | None = None
    parameters: FreeParameters | None = None
    member: Member | None = None

    def cases(self) -> st.SearchStrategy[Case]:
        """Return a strategy of the cases."""
        low, high = self.sides
        return _cases(
            shapes_and_ranks(
                min_side=low, max_side=high, min_rank=self.least_rank, max_rank=self.max_rank
            ),
            st.just(self.parameters) if self.parameters else free_parameters(dtype=self.dtype),
            st.just(self.member) if self.member else targets(),
        )

    @property
    def least_rank(self) -> int:
        """The least rank at which the parameters are what their name says."""
        fixed = self.parameters
        return 1 if fixed is None else min(fixed.columns, self.max_rank or fixed.columns)

    def each(self, law: str, seed: int, attempt: Callable[[Case], None]) -> None:
        """Have Hypothesis call a function on the cases, and on smaller ones once it raises."""
        runner = hypothesis.given(self.cases())(lambda case: attempt(case))
        runner = hypothesis.settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            print_blob=False,
        )(runner)
        hypothesis.seed(zlib.crc32(f"{seed} {law} {self.name}".encode()))(runner)()


def expect_some_shapes(scene: Scene) -> None:
    """Raise ShapeError for a factory that refuses all of a scene, if that has every rank."""
    if scene.least_rank == 1:
        raise ShapeError(
            "make(shape, rank) must accept some of the shapes that are tried; it refused all: "
            "pass a function that maps the shapes and ranks it is given to ones that fit"
        ) from None


@lru_cache(maxsize=4096)
def drawn(scene: Scene, law: str, seed: int) -> tuple[Case, ...]:
    """Return the cases of a scene, in the order in which they are tried."""
    found: list[Case] = []
    scene.each(law, seed, found.append)
    return tuple(found)


@st.composite
def _cases(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[tuple[tuple[int, int], int]],
    parameters: st.SearchStrategy[FreeParameters],
    members: st.SearchStrategy[Member],
) -> Case:
    """Return a strategy of cases; one seed serves for all that is random in a case."""
    (shape, rank), seed = draw(shapes), draw(seeds())
    values, member = draw(parameters), draw(members)
    return Case(shape, rank, replace(values, seed=seed), replace(member, seed=seed))


@dataclass(frozen=True)
class Finding(Generic[T]):
    """Where a law is broken.

    Parameters
    ----------
    trial : Trial
    found : str
        What was found there.
    show : str
        Python that shows it, or "" for the law's own.
    """

    trial: T
    found: str
    show: str = ""


class Search(Generic[T]):
    """Try the body of a law on cases, and remember what came of it.

    Parameters
    ----------
    body : callable
        Of a law.
    trial_of : callable
        From a case to what the body takes.
    seed : int
        Chooses the cases.

    Attributes
    ----------
    tried : int
        Cases on which the body came to its end.
    refusal : str
        Why the law does not apply, where it did not.
    finding : Finding or None
        The smallest counter-example.
    """

    def __init__(
        self, body: Callable[[T], None], trial_of: Callable[[Case], T], *, seed: int = 0
    ) -> None:
        self._body, self._trial_of, self._seed = body, trial_of, seed
        self.tried = 0
        self.refusal = ""
        self.finding: Finding[T] | None = None

    def explore(self, scene: Scene, law: str) -> bool:
        """Try cases of a scene until one breaks the law, and shrink it; return if all hold."""
        tried = self.tried
        try:
            accepted = self._try_all(scene, law)
        except Violation:
            self.tried = tried
            self._shrink(scene, law)
            return False
        if not accepted:
            expect_some_shapes(scene)
        return True

    def once(self, case: Case) -> bool:
        """Try one case; return whether the law holds there."""
        try:
            with seeded_elsewhere(0):
                self._judge(self._trial_of(case))
        except Violation:
            return False
        return True

    def simplify(self, cases: Iterable[Case]) -> None:
        """Replace the counter-example by the first case with the same finding, if there is one."""
        known, tried = self.finding, self.tried
        assert known is not None, "there is a counter-example to simplify"
        for case in cases:
            self.finding = None
            self._breaks(case)
            if self.finding is not None and same_kind(known.found, self.finding.found):
                break
        else:
            self.finding = known
        self.tried = tried

    def _try_all(self, scene: Scene, law: str) -> int:
        """Try cases as Hypothesis does, at a fraction of its time; return how many are accepted."""
        cases = drawn(scene, law, self._seed)
        with seeded_elsewhere(0) as reseed:
            accepted = sum(self._accepts(case, reseed) for case in cases)
            seen = {*cases}
            for times in _MORE:
                if accepted == len(cases):
                    break
                more = drawn(replace(scene, examples=times * scene.examples), law, self._seed)
                for case in (x for x in more if x not in seen):
                    accepted += accepted < len(cases) and self._accepts(case, reseed)
                seen.update(more)
        return accepted

    def _accepts(self, case: Case, reseed: Callable[[], None]) -> bool:
        """Try a case; return whether the factory takes it."""
        reseed()
        try:
            self._judge(self._trial_of(case))
        except RefusedCase:
            return False
        return True

    def _shrink(self, scene: Scene, law: str) -> None:
        """Have Hypothesis replace the finding by a smaller one."""
        first, self.finding = self.finding, None
        try:
            scene.each(law, self._seed, self._attempt)
        except Violation:
            return
        except Flaky:
            first = self.finding or first
        except Unsatisfiable:
            pass
        assert first is not None, "a case broke the law"
        # Among the cases for those refused are some that Hypothesis does not come by.
        if self._breaks(first.trial.case):
            return
        found = f"{first.found} (but not each time: the outcome depends on the past)"
        self.finding = replace(first, found=found)

    def _breaks(self, case: Case) -> bool:
        try:
            return not self.once(case)
        except RefusedCase:
            return False

    def _attempt(self, case: Case) -> None:
        try:
            self._judge(self._trial_of(case))
        except RefusedCase:
            hypothesis.reject()

    def _judge(self, trial: T) -> None:
        try:
            self._body(trial)
        except NotApplicable as reason:
            self.refusal: str = str(reason)
            return
        except RefusedCase:
            raise
        except Violation as violation:
            self.finding = Finding(trial, str(violation), violation.show)
            raise
        except (Exception, SystemExit) as error:
            self.finding = Finding(trial, f"{type(error).__name__}: {error}")
            raise Violation(self.finding.found) from error
        self.tried: int
        self.tried += 1
