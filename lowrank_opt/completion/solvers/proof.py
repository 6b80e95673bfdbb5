"""Whether an iteration that has settled is at the optimum: by the certificate of its problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lowrank_opt.completion.certificates.at_rank import gap_at_rank
from lowrank_opt.completion.certificates.certificate import (
    OptimalityCertificate,
    certify_completion,
)
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.model.bias import loss_of_the_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
    from lowrank_opt.completion.loop.checkpoint import State
    from lowrank_opt.completion.model.bias import AdditiveBias
    from lowrank_opt.operator import LowRankOperator

# An iteration that settles is asked to go on with a tolerance a tenth as large, for as long as the
# gap it can prove falls by this factor in two rounds. It is no monotone function of the objective.
_PROGRESS, _PROGRESS_AT_RANK = 0.5, 0.8
_MOST_ROUNDS = 8
_MOST_ESCAPES = 30
_LEAST_GAIN = 0.1
# From how many times the gap asked for on the optimum is looked for in W itself; where the rank
# seems to bind, only from close by: further off it most probably does.
_CLOSE, _CLOSE_AT_RANK = 1000.0, 10.0
_MOST_POLISHES = 6
# A descent crawls that gains less than this share of the gap between two certificates of settled
# iterates, and over as many iterations as others need in all.
_CRAWL, _SLOW = 0.05, 0.5
# The share of a gap below which an iterate counts as stationary at its rank: the rest is the
# price of the rank, unless it falls when the iteration goes on. Next to an optimum the part at the
# rank is of second order in the distance, and the rest of first order.
_STATIONARY = 0.1
_WORTH = 0.05
# Fits below this share of the loss of predicting the mean are nearly exact; their gap is relative
# to that share, since relative to almost nothing it would ask for more than rounding allows.
_NEARLY_EXACT = 1e-2


@dataclass
class Proof:
    """Certificates of the iterates at which an iteration settled; few, as each costs a pass.

    Parameters
    ----------
    problem : ConvexProblem
    gap : float
        Largest gap that counts as the optimum, relative to the objective, or to a hundredth of the
        loss of predicting the mean where that is more.
    last : OptimalityCertificate, optional
        The one of the last iterate at which the iteration settled.
    gaps : list of float
        Of all of them.
    escapes : int
        How often the iteration went on from a better point elsewhere.
    polishes, restarts : int
        How often the optimum was looked for in W itself, and from another start.
    unit : float
        The loss of predicting the mean.
    rank : int, optional
        How many columns iterates may have, where the problem does not say.
    since : int
        How many of the gaps were those of iterates before the last escape.
    objectives : list of float
        Of the same iterates as the gaps.

    Attributes
    ----------
    rank_binds : bool
        Whether the last iterate is as good as its rank allows, to first order, and not optimal.
    """

    problem: ConvexProblem
    gap: float
    last: OptimalityCertificate | None = None
    gaps: list[float] = field(default_factory=list[float])
    escapes: int = 0
    polishes: int = 0
    restarts: int = 0
    unit: float = 0.0
    rank: int | None = None
    since: int = 0
    objectives: list[float] = field(default_factory=list[float])
    rank_binds: bool = False

    @classmethod
    def of(
        cls, problem: ConvexProblem | None, gap: float | None, rank: int | None = None
    ) -> Proof | None:
        """Return a proof to be made, or None if there is nothing to prove."""
        if problem is None or gap is None:
            return None
        return cls(problem, gap, unit=loss_of_the_mean(problem.observations), rank=rank)

    def verdict(
        self,
        operator: LowRankOperator,
        bias: AdditiveBias,
        *,
        leave: Callable[[float], bool] | None = None,
        tighten: Callable[[], bool],
    ) -> CompletionStatus | None:
        """Return how it is with an iterate that settled, or None to go on.

        Parameters
        ----------
        operator, bias
            The iterate.
        leave : callable, optional
            Goes to a point that is better by a share of the objective; returns whether there is
            one.
        tighten : callable
            Lowers the tolerance; returns whether that makes sense.
        """
        if self.reached(operator, bias):
            return CompletionStatus.CONVERGED
        if leave is not None and self.escapes < _MOST_ESCAPES and leave(self.enough):
            self.escapes += 1
            self.since = len(self.gaps)
            return None
        if self._worthwhile() and tighten():
            return None
        return self.status

    def reached(self, operator: LowRankOperator, bias: AdditiveBias) -> bool:
        """Certify an iterate; return whether it is proved optimal to the gap."""
        near = self.glance(operator, bias)
        certificate = self.last
        assert certificate is not None, "as `glance` leaves it"
        self.gaps.append(certificate.gap)
        self.objectives.append(certificate.objective)
        if near:
            self.rank_binds = False
            return True
        at_rank = gap_at_rank(self.problem, operator, bias, rank=self.rank)
        price = max(certificate.gap - at_rank.amount, 0.0)
        self.last = replace(certificate, price_of_rank=price)
        self.rank_binds = at_rank.full and at_rank.amount <= max(
            _STATIONARY * certificate.gap, self.allowed
        )
        return False

    def glance(self, operator: LowRankOperator, bias: AdditiveBias) -> bool:
        """Certify an iterate that has not settled; return whether it is proved optimal."""
        self.last = certify_completion(self.problem, operator, bias)
        return self.last.gap <= self.allowed

    @property
    def allowed(self) -> float:
        """The largest gap that counts as the optimum, in the unit of the objective."""
        assert self.last is not None, "asked for after `reached`"
        return self.gap * max(self.last.objective, _NEARLY_EXACT * self.unit)

    def _worthwhile(self) -> bool:
        """Return whether going on may prove more: the gap still falls from round to round."""
        here = self.gaps[self.since :]
        if len(self.gaps) >= _MOST_ROUNDS + self.escapes:
            return False
        if self.rank_binds:
            return len(here) < 2 or here[-1] <= _PROGRESS_AT_RANK * here[-2]
        return len(here) < 3 or here[-1] <= _PROGRESS * here[-3]

    @property
    def status(self) -> CompletionStatus:
        """How it is with an iterate that is not proved optimal, when the iteration ends there."""
        return CompletionStatus.RANK_BINDS if self.rank_binds else CompletionStatus.GAP_OPEN

    @property
    def crawls(self) -> bool:
        """Whether the last descent, and the way out before it, hardly narrowed the gap."""
        if len(self.gaps) < 2 or self.rank_binds:
            return False
        return self.objectives[-2] - self.objectives[-1] < _CRAWL * self.gaps[-1]

    def is_slow(self, gain: float) -> bool:
        """Return whether many iterations that gained so much left most of the gap."""
        return self.last is not None and gain < _SLOW * self.last.gap

    def may_polish(self, *, crawls: bool) -> bool:
        """Return whether to look for the optimum in W itself: close by, or where descent crawls."""
        found = self.last
        if found is None or self.polishes == _MOST_POLISHES:
            return False
        return crawls or found.gap <= self.allowed * (_CLOSE_AT_RANK if self.rank_binds else _CLOSE)

    @property
    def enough(self) -> float:
        """By what share of the objective a point has to be better to go on from it.

        From an iterate that is stationary at its full rank, by a share of the gap.
        """
        assert self.last is not None, "asked for after `reached`"
        least = _LEAST_GAIN * self.gap
        if not self.rank_binds:
            return least
        return max(_WORTH * self.last.gap / (self.last.objective or 1.0), least)

    def state(self) -> State:
        """Return what decides how the iteration goes on, for a `Checkpoint`."""
        counts: State = [self.escapes, self.polishes, self.restarts, self.since]
        return [list(self.gaps), list(self.objectives), counts]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        self.gaps, self.objectives, counts = state
        self.escapes, self.polishes, self.restarts, self.since = counts
