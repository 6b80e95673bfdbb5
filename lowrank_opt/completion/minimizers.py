"""Two ways to take a step: L-BFGS with a line search, and any first-order torch optimizer."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import LBFGS, Optimizer

from lowrank_opt.completion.objective import Objective

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
    """Evaluates the objective where it stands, and advances by one iteration."""

    def evaluate(self) -> Evaluation:
        """Return the objective at the present variables."""
        ...

    def advance(self) -> bool:
        """Change the variables once; return whether they changed."""
        ...

    def restart(self) -> None:
        """Forget the past, before another attempt from the present variables."""
        ...


class FirstOrder:
    """Full-batch steps of a torch optimizer.

    It sees the objective in a unit in which predicting the mean costs one for each entry.

    Parameters
    ----------
    objective : Objective
    make : callable
        Maps a list of tensors to a `torch.optim.Optimizer`.
    """

    def __init__(self, objective: Objective, make: Callable[[Sequence[Tensor]], Optimizer]) -> None:
        self.objective, self.make = objective, make
        self.factor = float(len(objective.centred))
        self.optimizer = make(objective.variables)

    def evaluate(self) -> Evaluation:
        value, _ = _differentiate(self.objective, self.factor)
        return _evaluation(value, self.objective.variables, self.factor)

    def advance(self) -> bool:
        self.optimizer.step()
        return True

    def restart(self) -> None:
        self.optimizer = self.make(self.objective.variables)


class QuasiNewton:
    """`torch.optim.LBFGS` with a strong-Wolfe line search, one iteration at a time.

    The optimizer asks again for the objective at the point where its last line search ended; the
    last evaluations are remembered, so that this costs nothing.

    Parameters
    ----------
    objective : Objective
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.memory: deque[_Remembered] = deque(maxlen=_REMEMBERED)
        self.restart()

    def evaluate(self) -> Evaluation:
        return _evaluation(self._closure(), self.objective.variables, _MAGNIFICATION)

    def advance(self) -> bool:
        before = self._point()
        self.optimizer.step(self._closure)
        return not torch.equal(before, self._point())

    def restart(self) -> None:
        # Stopping is decided by the caller: the tolerances here never act.
        self.optimizer = LBFGS(
            self.objective.variables,
            max_iter=1,
            max_eval=_LINE_SEARCH,
            history_size=_HISTORY_SIZE,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def _closure(self) -> float:
        point = self._point()
        for known in self.memory:
            if torch.equal(known.point, point):
                _set_gradients(self.objective.variables, known.gradients)
                return known.value
        value, gradients = _differentiate(self.objective, _MAGNIFICATION)
        self.memory.append(_Remembered(point, value, gradients))
        return value

    def _point(self) -> Tensor:
        return parameters_to_vector(x.detach() for x in self.objective.variables)


class _Remembered(NamedTuple):
    point: Tensor
    value: float
    gradients: Sequence[Tensor | None]


def _differentiate(objective: Objective, factor: float) -> tuple[float, Sequence[Tensor | None]]:
    with torch.enable_grad():
        value = factor * objective.value()
    gradients = torch.autograd.grad(value, objective.variables, allow_unused=True)
    _set_gradients(objective.variables, gradients)
    return float(value.detach()), gradients


def _set_gradients(variables: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for x, g in zip(variables, gradients, strict=True):
        x.grad = g


def _evaluation(value: float, variables: Sequence[Tensor], factor: float) -> Evaluation:
    norms = [x.grad.double().norm() for x in variables if x.grad is not None]
    gradient_norm = float(torch.stack(norms).norm()) if norms else 0.0
    return Evaluation(value / factor, gradient_norm / factor)
