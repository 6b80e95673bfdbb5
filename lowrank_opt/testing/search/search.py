"""The search for a counter-example: Hypothesis draws and shrinks, a fixed seed repeats.

What is drawn depends on the scene, the law and the seed, never on what is checked: the cases are
drawn once, tried without Hypothesis on everything, and searched by it only where one breaks a law.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from lowrank_opt.errors import ShapeError
from lowrank_opt.testing.cases.case import Case, RefusedCase, Subject, seeded_elsewhere
from lowrank_opt.testing.cases.members import Member
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.strategies import free_parameters, seeds, shapes_and_ranks, targets
from lowrank_opt.testing.search.simpler import same_kind
from lowrank_opt.testing.search.verdict import NotApplicable, Violation


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
            shapes_and_ranks(min_side=low, max_side=high, max_rank=self.max_rank),
            st.just(self.parameters) if self.parameters else free_parameters(dtype=self.dtype),
            st.just(self.member) if self.member else targets(),
        )

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


class Search:
    """Try the body of a law on cases, and remember what came of it.

    Parameters
    ----------
    body : callable
        Of a law.
    subject_of : callable
    seed : int
        Chooses the cases.

    Attributes
    ----------
    tried : int
        Cases on which the body came to its end.
    refusal : str
        Why the law does not apply, where it did not.
    failure : tuple of Subject and str, or None
        The smallest counter-example, and what was found there.
    """

    def __init__(
        self,
        body: Callable[[Subject], None],
        subject_of: Callable[[Case], Subject],
        *,
        seed: int = 0,
    ) -> None:
        self._body, self._subject_of, self._seed = body, subject_of, seed
        self.tried = 0
        self.refusal = ""
        self.failure: tuple[Subject, str] | None = None

    def explore(self, scene: Scene, law: str) -> bool:
        """Try cases of a scene until one breaks the law, and shrink it; return if all hold."""
        if self._all_hold(drawn(scene, law, self._seed)):
            return True
        before, self.failure = self.failure, None
        try:
            scene.each(law, self._seed, self._attempt)
        except Violation:
            return False
        except Flaky:
            before = self.failure
        except Unsatisfiable:
            raise ShapeError(
                "make(shape, rank) must accept some of the shapes that are tried; it refused all: "
                "pass a function that maps the shapes and ranks it is given to ones that fit"
            ) from None
        if before is None:
            return True
        subject, found = before
        self.failure = subject, f"{found} (but not each time: the outcome depends on the past)"
        return False

    def _all_hold(self, cases: Iterable[Case]) -> bool:
        """Try cases as Hypothesis does, at a fraction of its time; stop at the first that fails."""
        tried = self.tried
        with seeded_elsewhere(0) as reseed:
            for case in cases:
                reseed()
                try:
                    self._judge(self._subject_of(case))
                except (Violation, RefusedCase):
                    self.tried = tried
                    return False
        return True

    def once(self, case: Case) -> bool:
        """Try one case; return whether the law holds there."""
        try:
            self._judge(self._subject_of(case))
        except Violation:
            return False
        return True

    def simplify(self, cases: Iterable[Case]) -> None:
        """Replace the counter-example by the first case with the same finding, if there is one."""
        subject, found = self._failed()
        tried = self.tried
        for case in cases:
            self.failure = None
            if not self._breaks(case):
                continue
            simple, other = self._failed()
            if same_kind(found, other):
                self.tried = tried
                self.failure = simple, other
                return
        self.tried, self.failure = tried, (subject, found)

    def _breaks(self, case: Case) -> bool:
        try:
            return not self.once(case)
        except RefusedCase:
            return False

    def _attempt(self, case: Case) -> None:
        try:
            self._judge(self._subject_of(case))
        except RefusedCase:
            hypothesis.reject()

    def _judge(self, subject: Subject) -> None:
        try:
            self._body(subject)
        except NotApplicable as reason:
            self.refusal = str(reason)
            return
        except RefusedCase:
            raise
        except Violation as violation:
            self.failure = subject, str(violation)
            raise
        except (Exception, SystemExit) as error:
            self.failure = subject, f"{type(error).__name__}: {error}"
            raise Violation(self.failure[1]) from error
        self.tried += 1

    def _failed(self) -> tuple[Subject, str]:
        assert self.failure is not None, "a flaky failure was recorded when it happened"
        return self.failure
