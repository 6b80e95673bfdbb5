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
    from lowrank_opt.completion.certificates.convex_problem import ConvexProblem
    from lowrank_opt.completion.loop.checkpoint import State
    from lowrank_opt.completion.model.bias import AdditiveBias
    from lowrank_opt.operator import LowRankOperator

# An iteration that settles is asked to go on with a tolerance a tenth as large, for as long as the
# gap it can prove falls by this factor each time.
_PROGRESS = 0.7
_MOST_ROUNDS = 6
_MOST_ESCAPES = 30
_LEAST_GAIN = 0.1
_CLOSE = 1000.0
_MOST_POLISHES = 3
# The share of a gap below which an iterate counts as stationary at its rank: the rest is the
# price of the rank, and going on at this rank cannot close it.
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
    unit : float
        The loss of predicting the mean.

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
    unit: float = 0.0
    rank_binds: bool = False

    @classmethod
    def of(cls, problem: ConvexProblem | None, gap: float | None) -> Proof | None:
        """Return a proof to be made, or None if there is nothing to prove."""
        if problem is None or gap is None:
            return None
        return cls(problem, gap, unit=loss_of_the_mean(problem.observations))

    def reached(self, operator: LowRankOperator, bias: AdditiveBias) -> bool:
        """Certify an iterate; return whether it is proved optimal to the gap."""
        certificate = certify_completion(self.problem, operator, bias)
        self.last = certificate
        self.gaps.append(certificate.gap)
        if certificate.gap <= self.allowed:
            self.rank_binds = False
            return True
        at_rank = gap_at_rank(self.problem, operator, bias)
        price = max(certificate.gap - at_rank.amount, 0.0)
        self.last = replace(certificate, price_of_rank=price)
        self.rank_binds = at_rank.full and at_rank.amount <= max(
            _STATIONARY * certificate.gap, self.allowed
        )
        return False

    @property
    def allowed(self) -> float:
        """The largest gap that counts as the optimum, in the unit of the objective."""
        assert self.last is not None, "asked for after `reached`"
        return self.gap * max(self.last.objective, _NEARLY_EXACT * self.unit)

    def worthwhile(self) -> bool:
        """Return whether going on may prove more: the gap still falls from round to round."""
        if len(self.gaps) < 2:
            return True
        before, now = self.gaps[-2:]
        return len(self.gaps) < _MOST_ROUNDS + self.escapes and now <= _PROGRESS * before

    @property
    def status(self) -> CompletionStatus:
        """How it is with an iterate that is not proved optimal, when the iteration ends there."""
        return CompletionStatus.RANK_BINDS if self.rank_binds else CompletionStatus.GAP_OPEN

    @property
    def may_escape(self) -> bool:
        """Whether another point may still be looked for."""
        return self.escapes < _MOST_ESCAPES

    @property
    def may_polish(self) -> bool:
        """Whether the last iterate was close enough to the optimum to look for it in W itself."""
        found = self.last
        if found is None or self.polishes == _MOST_POLISHES:
            return False
        return found.gap <= _CLOSE * self.allowed

    @property
    def enough(self) -> float:
        """By what share of the objective a point has to be better to go on from it."""
        return _LEAST_GAIN * self.gap

    @property
    def worth_leaving_for(self) -> float:
        """The same for an iterate that is stationary at its full rank: a share of the gap."""
        assert self.last is not None, "asked for after `reached`"
        left = self.escapes < _MOST_ESCAPES and self.last.objective > 0
        return max(_WORTH * self.last.gap / self.last.objective, self.enough) if left else 1.0

    def state(self) -> State:
        """Return what decides how the iteration goes on, for a `Checkpoint`."""
        return [list(self.gaps), self.escapes, self.polishes]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        self.gaps, self.escapes, self.polishes = state
