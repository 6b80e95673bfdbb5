"""Whether an iteration that has settled is at the optimum: by the certificate of its problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowrank_opt.completion.certificates.certificate import (
    OptimalityCertificate,
    certify_completion,
)

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


@dataclass
class Proof:
    """Certificates of the iterates at which an iteration settled; few, as each costs a pass.

    Parameters
    ----------
    problem : ConvexProblem
    gap : float
        Largest gap that counts as the optimum, relative to the objective.
    last : OptimalityCertificate, optional
        The one of the last iterate at which the iteration settled.
    gaps : list of float
        Of all of them.
    escapes : int
        How often the iteration went on from a better point elsewhere.
    """

    problem: ConvexProblem
    gap: float
    last: OptimalityCertificate | None = None
    gaps: list[float] = field(default_factory=list[float])
    escapes: int = 0
    polishes: int = 0

    @classmethod
    def of(cls, problem: ConvexProblem | None, gap: float | None) -> Proof | None:
        """Return a proof to be made, or None if there is nothing to prove."""
        return None if problem is None or gap is None else cls(problem, gap)

    def reached(self, operator: LowRankOperator, bias: AdditiveBias) -> bool:
        """Certify an iterate; return whether it is proved optimal to the gap."""
        certificate = certify_completion(self.problem, operator, bias)
        self.last = certificate
        self.gaps.append(certificate.gap)
        return certificate.gap <= self.gap * certificate.objective

    def worthwhile(self) -> bool:
        """Return whether going on may prove more: the gap still falls from round to round."""
        if len(self.gaps) < 2:
            return True
        before, now = self.gaps[-2:]
        return len(self.gaps) < _MOST_ROUNDS + self.escapes and now <= _PROGRESS * before

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
        return found.gap <= _CLOSE * self.gap * found.objective

    @property
    def enough(self) -> float:
        """By what share of the objective a point has to be better to go on from it."""
        return _LEAST_GAIN * self.gap

    def state(self) -> State:
        """Return what decides how the iteration goes on, for a `Checkpoint`."""
        return [list(self.gaps), self.escapes, self.polishes]

    def resume(self, state: State) -> None:
        """Go on from a state."""
        assert isinstance(state, list), "as `state` returned it"
        self.gaps, self.escapes, self.polishes = state
