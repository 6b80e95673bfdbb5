"""Growing the rank of a variational posterior for as long as the data support more directions.

Coordinate ascent of the evidence bound can empty a direction and hardly ever fills it again. Begun
with many directions at once, the poor fit of the first sweeps empties supported ones among the
others. Here directions are added to a fit that has settled without them.
"""

from __future__ import annotations

from collections.abc import Iterator

from lowrank_opt.completion.bayes.variational_sweeps import VariationalPosterior
from lowrank_opt.completion.loop.checkpoint import State
from lowrank_opt.completion.results.cut import condensed
from lowrank_opt.completion.solvers.iterates import Iterate
from lowrank_opt.sets import FeasibleSet

# A direction is live if its singular value is above this share of the largest.
_LIVE = 1e-2


class GrowingSweeps(Iterator[Iterate]):
    """Sweeps at one rank until they settle, then at twice that rank from there on.

    A stage with fewer live directions than its rank is the last one. A stage with no more live
    directions than the one before is undone.

    Parameters
    ----------
    model : VariationalPosterior
        Of the first rank, one that the number of entries supports.
    rank : int
        The largest rank.
    tolerance : float
        As in `variational`.
    feasible : FeasibleSet or None
        What the mean is projected onto.
    """

    def __init__(
        self,
        model: VariationalPosterior,
        rank: int,
        tolerance: float,
        feasible: FeasibleSet | None,
    ) -> None:
        self.rank: int
        self.tolerance: float
        self.feasible: FeasibleSet | None
        self.model, self.rank, self.tolerance, self.feasible = model, rank, tolerance, feasible
        self.before: VariationalPosterior | None = None
        self.stage, self.grows = 0, False

    def __next__(self) -> Iterate:
        if self.grows:
            self.before, self.model = self.model, self.model.grown(self._next_rank())
            self.stage, self.grows = self.stage + 1, False
        previous = self.model.energy
        if previous - self.model.sweep() > self.tolerance / 2 * self.model.count:
            return self._iterate(settled=False)
        live = _live(self.model)
        if self.before is not None and live <= _live(self.before):
            return self._undo()
        self.grows = live == self.model.rank < self.rank
        return self._iterate(settled=not self.grows)

    def state(self) -> State:
        """Return what sweeps change, for a `Checkpoint`."""
        before = self.before
        return {
            "seed": self.model.seed,
            "rank": self.model.rank,
            "model": self.model.state(),
            "before": None if before is None else [before.rank, before.state()],
            "progress": [self.stage, self.grows],
        }

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, dict), "as `state` returned it"
        first, first.seed = self.model, state["seed"]
        if state["before"] is not None:
            rank, before = state["before"]
            self.before = _restored(first, rank, before)
        self.model = _restored(first, state["rank"], state["model"])
        self.grows: bool
        self.stage, self.grows = state["progress"]

    def _next_rank(self) -> int:
        return min(2 * self.model.rank, self.rank)

    def _undo(self) -> Iterate:
        assert self.before is not None, "there was a stage before"
        self.model: VariationalPosterior
        self.stage: int
        self.model, self.before, self.stage = self.before, None, self.stage + 1
        return self._iterate(settled=True)

    def _iterate(self, *, settled: bool) -> Iterate:
        operator, bias = self.model.mean()
        if self.feasible is not None:
            operator = self.feasible.project(operator)
        objective = self.model.in_unit_of_loss(self.model.energy)
        return Iterate(operator, bias, objective, settled=settled, stage=self.stage)


def _restored(first: VariationalPosterior, rank: int, state: State) -> VariationalPosterior:
    model = first if rank == first.rank else first.grown(rank)
    model.resume(state)
    return model


def _live(model: VariationalPosterior) -> int:
    values = condensed(model.mean()[0], model.observations).singular_values()
    return int((values > _LIVE * values[0]).sum())
