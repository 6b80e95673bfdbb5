"""Two ways to take a step: L-BFGS with a line search, and any first-order torch optimizer."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import LBFGS, Optimizer

from lowrank_opt.completion.loop.checkpoint import State, own_lines
from lowrank_opt.completion.loop.spread_vector import SpreadVector
from lowrank_opt.completion.model.objective import Objective
from lowrank_opt.observations.parts import entry_count

MakeOptimizer: TypeAlias = Callable[[Sequence[Tensor]], Optimizer]

_HISTORY_SIZE = 20
_REMEMBERED = 3
_LINE_SEARCH = 25
# torch's LBFGS forgets a step whose curvature product is below 1e-10, whatever its units; a power
# of two moves that far below the precision of a fit, and rounds nothing.
_MAGNIFICATION = 2.0**30


class Evaluation(NamedTuple):
    """The objective, in its own unit, and the norm of its gradient."""

    value: float
    gradient_norm: float


class Minimizer(Protocol):
    """Evaluates the objective where it stands, and advances by one iteration.

    Attributes
    ----------
    met_not_finite : bool
        Whether the last `advance` met a point where the objective is not finite.
    """

    met_not_finite: bool

    def evaluate(self) -> Evaluation:
        """Return the objective at the present variables."""
        ...

    def advance(self) -> bool:
        """Change the variables once; return whether they changed."""
        ...

    def restart(self) -> None:
        """Forget the past, before another attempt from the present variables."""
        ...

    def state(self) -> State:
        """Return what the next steps depend on, besides the variables, for a `Checkpoint`."""
        ...

    def resume(self, state: State) -> None:
        """Go on from a state; the variables are already those of that moment."""
        ...


class OptimizerSteps(Minimizer):
    """Full-batch steps of a torch optimizer.

    It sees the objective in a unit in which predicting the mean costs one for each entry.

    Parameters
    ----------
    objective : Objective
    make : callable
        Maps a list of tensors to a `torch.optim.Optimizer`.
    """

    def __init__(self, objective: Objective, make: MakeOptimizer) -> None:
        self.objective: Objective
        self.make: MakeOptimizer
        self.objective, self.make = objective, make
        self.met_not_finite = False
        self.factor: float = float(entry_count(objective.centred))
        self.optimizer = make(objective.variables)

    def evaluate(self) -> Evaluation:
        value, gradients = _differentiate(self.objective, self.factor)
        for x, g in zip(self.objective.variables, gradients, strict=True):
            x.grad = g
        gradient_norm = self._norm(gradients)
        return Evaluation(value / self.factor, gradient_norm / self.factor)

    def advance(self) -> bool:
        self.optimizer.step()
        return True

    def restart(self) -> None:
        self.optimizer: Optimizer = self.make(self.objective.variables)

    def state(self) -> State:
        state = self.optimizer.state_dict()
        own = self.objective.of_own_lines
        moments = {k: own_lines(x) if own[k] else x for k, x in state["state"].items()}
        return {**state, "state": moments}

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        vector = _vector(self.objective)
        if vector.part is None:
            return float(torch.stack([g.double().norm() for g in gradients]).norm())
        return float(vector.total(_flat(gradients).square()).sqrt())

    def resume(self, state: State) -> None:
        assert isinstance(state, dict), "as `state` returned it"
        # Text came back for the numbers of the parameters.
        moments = {int(k): x for k, x in state["state"].items()}
        self.optimizer.load_state_dict({**state, "state": moments})


class QuasiNewtonSteps(Minimizer):
    """`torch.optim.LBFGS` with a strong-Wolfe line search, one iteration at a time.

    It works on one float64 vector, which is rounded to the variables: sums and line search do not
    lose what the variables' dtype can still tell. It asks again for the objective at the point
    where its last line search ended; the last evaluations are remembered, so that this is free.

    Parameters
    ----------
    objective : Objective
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.spread: SpreadVector = _vector(objective)
        self.memory: deque[_Remembered] = deque(maxlen=_REMEMBERED)
        self.met_not_finite = False
        self.restart()

    def evaluate(self) -> Evaluation:
        point = self._evaluate_at(self.vector.detach().clone())
        g, spread = point.gradient, self.spread
        gradient_norm = float(g.norm() if spread.part is None else spread.dot(g, g).sqrt())
        return Evaluation(point.value / _MAGNIFICATION, gradient_norm / _MAGNIFICATION)

    def advance(self) -> bool:
        before = self.vector.detach().clone()
        self.met_not_finite = False
        with self.spread.reducing() as mode:

            def closure() -> float:
                if mode is None:
                    return self._closure()
                mode.paused = True
                try:
                    return self._closure()
                finally:
                    mode.paused = False

            self.optimizer.step(closure)
        return not self.spread.agreed(here=torch.equal(before, self.vector))

    def restart(self) -> None:
        variables = self.objective.variables
        self.vector: Tensor = parameters_to_vector(x.detach().double() for x in variables)
        # Stopping is decided by the caller: the tolerances here never act.
        self.optimizer: LBFGS = LBFGS(
            [self.vector.requires_grad_()],
            max_iter=1,
            max_eval=_LINE_SEARCH,
            history_size=_HISTORY_SIZE,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def state(self) -> State:
        remembered = [tuple(known) for known in self.memory]
        past = dict(self.optimizer.state[self.vector])
        return self.spread.apart(
            {"vector": self.vector.detach(), "past": past, "remembered": remembered}
        )

    def resume(self, state: State) -> None:
        state = self.spread.joined(state)
        assert isinstance(state, dict), "as `state` returned it"
        with torch.no_grad():
            self.vector.copy_(state["vector"])
        self.optimizer.state[self.vector].update(state["past"])
        self.memory.extend(_Remembered(*known) for known in state["remembered"])

    def _closure(self) -> float:
        point = self._evaluate_at(self.vector.detach().clone())
        self.vector.grad = point.gradient.clone()
        return point.value

    def _evaluate_at(self, x: Tensor) -> "_Remembered":
        variables = self.objective.variables
        with torch.no_grad():
            for v, part in zip(variables, x.split([v.numel() for v in variables]), strict=True):
                v.copy_(part.view_as(v))
        for known in self.memory:
            if self.spread.agreed(here=torch.equal(known.x, x)):
                return known
        value, gradients = _differentiate(self.objective, _MAGNIFICATION)
        return self._remember(x, value, _flat(gradients))

    def _remember(self, x: Tensor, value: float, gradient: Tensor) -> "_Remembered":
        finite = math.isfinite(value) and bool(torch.isfinite(gradient).all())
        if not self.spread.agreed(here=finite):
            # With infinity and NaN the line search halves its interval.
            self.met_not_finite: bool = True
            value, gradient = math.inf, torch.full_like(gradient, math.nan)
        self.memory.append(_Remembered(x, value, gradient))
        return self.memory[-1]


class _Remembered(NamedTuple):
    x: Tensor
    value: float
    gradient: Tensor


def _vector(objective: Objective) -> SpreadVector:
    return SpreadVector(objective.variables, objective.of_own_lines, objective.observations.part)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.double().reshape(-1) for g in gradients])


def _differentiate(objective: Objective, factor: float) -> tuple[float, list[Tensor]]:
    with torch.enable_grad():
        value = factor * objective.value()
    variables = objective.variables
    gradients = torch.autograd.grad(value, variables, allow_unused=True)
    return float(value.detach()), [
        torch.zeros_like(x) if g is None else g for x, g in zip(variables, gradients, strict=True)
    ]
