"""A function as a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.completion.solvers.traits import AnyResult, Traits

_ANY = Traits(
    sets=("nothing", "rank", "set", "parameterization"),
    losses="any",
    penalty="yes",
    side=True,
    devices=("cpu", "cuda", "mps", "meta"),
    start=True,
    checkpoint=True,
)


@dataclass(frozen=True)
class Custom:
    """A function of a problem and a run, as a solver; any problem is handed to it.

    Parameters
    ----------
    function : callable
        ``function(problem, run)`` returns a `CompletionResult`.

    Examples
    --------
    >>> from lowrank_opt.completion import als
    >>> solver = Custom(lambda problem, run: als(problem.observations, problem.rank, penalty=1.0))
    >>> "rank" in solver.traits.sets
    True
    """

    traits: ClassVar[Traits] = _ANY
    function: Callable[[CompletionProblem, Run], AnyResult]

    def solve(self, problem: CompletionProblem, run: Run) -> AnyResult:
        """Call the function."""
        return self.function(problem, run)
