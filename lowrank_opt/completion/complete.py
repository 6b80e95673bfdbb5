"""Fit a parameterization, and biases, to observed entries."""

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam

from lowrank_opt.completion.certificates.convex_problem import convex_problem_of
from lowrank_opt.completion.loop.checkpoint import Checkpoint, State
from lowrank_opt.completion.loop.history import History, Iteration
from lowrank_opt.completion.loop.progress import Progress, reporting
from lowrank_opt.completion.loop.status import CompletionStatus
from lowrank_opt.completion.loop.stopping import Stopping
from lowrank_opt.completion.model.box import InRange
from lowrank_opt.completion.model.checks import (
    check_amounts,
    check_choices,
    check_counts,
    check_parameterization_fits,
)
from lowrank_opt.completion.model.losses import Loss
from lowrank_opt.completion.model.objective import Objective
from lowrank_opt.completion.registry import SolverChoice, SolverOptions, solve
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.held_out import training_and_validation
from lowrank_opt.completion.solvers.minimizers import (
    FirstOrder,
    Minimizer,
    OptimizerChoice,
    QuasiNewton,
)
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization

_ADAM_STEP = 0.01


def complete(
    observations: Observations,
    parameterization: Parameterization,
    *,
    solver: SolverChoice = "gradient",
    loss: Loss = "squared",
    prediction_range: tuple[float, float] | None = None,
    bias: Literal["additive"] | None = "additive",
    bias_penalty: float = 1.0,
    penalty: float = 0.0,
    optimizer: OptimizerChoice = "lbfgs",
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    validation: float | Observations | None = None,
    patience: int = 20,
    generator: torch.Generator | None = None,
    progress: Progress = False,
    checkpoint: Checkpoint | None = None,
) -> CompletionResult:
    r"""Complete a matrix: fit ``W + mean + row bias + column bias`` to the observed entries.

    Minimises :math:`\sum_k w_k\, \rho(W_{ij} + \mu + a_i + b_j - v_k)
    + \tfrac12 \lambda \|\theta\|^2 + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)`
    over the free parameters :math:`\theta` of the parameterization and over the biases, so that W
    stays in the feasible set at every iterate. W is never formed.

    Parameters
    ----------
    observations : Observations, shape (m, n)
        Converted to the dtype of the parameterization.
    parameterization : Parameterization, shape (m, n)
        Trained in place, from where it is: in float32 or float64, with trainable parameters.
    solver : str or callable
        "gradient" trains the free parameters by `optimizer`. The others are the functions of that
        name in `lowrank_opt.completion`: they take the rank or the set of the parameterization,
        refuse what does not fit them, and take options that are left at their defaults from
        themselves. A callable is called like them, ``solver(observations, rank, **options)``.
    loss : {"squared", "absolute", "huber", "logistic", "ordered_probit", "poisson"} or callable
        :math:`\rho(e) = e^2/2`, :math:`|e|`, or :math:`e^2/2` up to 1 and :math:`|e| - 1/2`
        beyond; or the negative log-likelihood of two values, of ordered levels or of counts,
        whose score is the sum above and whose predictions are means (see `completion.losses`). A
        callable maps a tensor of residuals to losses, entry by entry.
    prediction_range : pair of float, optional
        Every prediction is in it, and so must be the values; scores beyond an end cost nothing
        for a value at that end (see `InRange`). For losses of residuals.
    bias : {"additive"} or None
        Fit a constant for each row and column besides the weighted mean of the values; or none.
    bias_penalty : float
        :math:`\lambda_b \ge 0`, in units of entries: a row with that many entries gets about half
        of its mean deviation.
    penalty : float
        :math:`\lambda \ge 0`, for parameterizations without a norm bound.
    optimizer : {"lbfgs", "adam"} or callable
        L-BFGS with a strong-Wolfe line search; full-batch Adam with step 0.01; or a function from
        a list of tensors to a `torch.optim.Optimizer`. Prefer Adam for the absolute loss, which
        is not smooth.
    tolerance : float
        Stop when the objective fell by less than this share over the last 10 iterations, or when
        residuals are 1e-4 times that, or 16 units of rounding, relative to the spread of values.
    max_iterations : int
    validation : float, Observations or None
        Entries for early stopping: a share in (0, 1) of the observations, held out at random and
        not fitted; or other entries of the same matrix. The iterate with the smallest (weighted)
        root mean squared error on them is returned.
    patience : int
        Iterations without a smaller validation error before stopping.
    generator : torch.Generator, optional
        For the random share.
    progress : bool or callable
        Show a bar, or call a function with each `Iteration`.
    checkpoint : Checkpoint, optional
        Where to leave the state, that of the optimizer included, and to go on from it.

    Returns
    -------
    CompletionResult
        The best iterate, detached. Rows and columns without an entry are zero in its operator,
        which increases no norm: their predictions are the biases (an inductive parameterization,
        such as `NestedSVD`, predicts them itself). A bad end is a status, not an error; see
        `CompletionResult.raise_if_failed`.

    Raises
    ------
    ShapeError
        If shapes, dtypes or devices do not fit, or there is nothing to train.
    ObservationError
        If values overflow in the dtype of the parameterization, the loss is not defined at them,
        or a share cannot be held out.
    RadiusError
        If another setting is outside its domain.
    OptionError
        If the solver is unknown, or does not take the set or an option.

    References
    ----------
    L-BFGS: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.5.

    Examples
    --------
    >>> from lowrank_opt import HomogeneousBall
    >>> truth = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 5.0))
    >>> observed = Observations.from_dense(truth.where(torch.eye(5, 4) == 0, torch.nan))
    >>> result = complete(observed, HomogeneousBall((5, 4), 2, radius=60.0), bias=None)
    >>> result.status.succeeded
    True
    """
    if prediction_range is not None:
        loss = InRange(*prediction_range, loss=loss)
    check_choices(loss=loss, bias=bias, optimizer=optimizer, progress=progress)
    check_amounts(bias_penalty=bias_penalty, penalty=penalty, tolerance=tolerance)
    check_counts(max_iterations=max_iterations, patience=patience)
    dtype = check_parameterization_fits(parameterization, observations)
    options = SolverOptions(
        loss,
        bias,
        bias_penalty,
        penalty,
        optimizer,
        tolerance,
        max_iterations,
        validation,
        patience,
        generator,
        progress,
        checkpoint,
    )
    converted = observations.to(dtype=dtype)
    if solver == "gradient":
        return _by_gradient(converted, parameterization, options)
    return solve(solver, converted, parameterization, options)


def _by_gradient(
    observations: Observations, parameterization: Parameterization, options: SolverOptions
) -> CompletionResult:
    fitted, held_out = training_and_validation(observations, options.validation, options.generator)
    fit_bias, bias_penalty = options.bias is not None, options.bias_penalty
    loss, penalty = options.loss, options.penalty
    objective = Objective(
        parameterization,
        fitted,
        fit_bias=fit_bias,
        loss=loss,
        penalty=penalty,
        bias_penalty=bias_penalty,
    )
    stopping = Stopping(observations.dtype, tolerance=options.tolerance, patience=options.patience)
    minimizer = _minimizer(objective, options.optimizer)
    fit = _Fit(objective, minimizer, stopping, held_out, options.checkpoint)
    with reporting(options.progress, options.max_iterations) as report:
        status = fit.run(options.max_iterations, report)
    problem = convex_problem_of(
        parameterization,
        fitted,
        loss=loss,
        penalty=penalty,
        bias_penalty=bias_penalty if fit_bias else None,
    )
    return CompletionResult(
        objective.operator(),
        objective.bias(),
        status,
        fit.history,
        problem=problem,
        link=objective.link(),
    )


class _Fit:
    """The iteration: evaluate, take note, stop or advance."""

    def __init__(
        self,
        objective: Objective,
        minimizer: Minimizer,
        stopping: Stopping,
        held_out: Observations | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.objective, self.minimizer, self.stopping = objective, minimizer, stopping
        self.held_out, self.checkpoint = held_out, checkpoint
        self.history, self.best = History(), self._copy()
        self.start = time.perf_counter()
        state = None if checkpoint is None else checkpoint.restored()
        if state is not None:
            self._resume(state)

    def run(self, max_iterations: int, report: Callable[[Iteration], None]) -> CompletionStatus:
        """Iterate, and leave the variables at the best iterate, whatever happens."""
        try:
            return self._iterate(max_iterations, report)
        except KeyboardInterrupt:
            return CompletionStatus.INTERRUPTED
        finally:
            self._restore_best()

    def _iterate(
        self, max_iterations: int, report: Callable[[Iteration], None]
    ) -> CompletionStatus:
        for _ in range(len(self.history), max_iterations):
            self._leave_checkpoint()
            status = self._look(report) or self._advance()
            if status is not None:
                return status
        return self._look(report) or CompletionStatus.MAX_ITERATIONS

    def _look(self, report: Callable[[Iteration], None]) -> CompletionStatus | None:
        value, gradient_norm = self.minimizer.evaluate()
        if not (math.isfinite(value) and math.isfinite(gradient_norm)):
            return CompletionStatus.NUMERICAL_TROUBLE
        rmse = math.nan if self.held_out is None else self.objective.rmse(self.held_out)
        unit, seconds = self.objective.unit, time.perf_counter() - self.start
        iteration = Iteration(value * unit, gradient_norm * unit, rmse, seconds)
        self.history.append(iteration)
        report(iteration)
        status = self.stopping.judge(value, rmse)
        if self.stopping.improved:
            self.best = self._copy()
        return status

    def _advance(self) -> CompletionStatus | None:
        if self.minimizer.advance():
            return None
        # A line search can fail because of an old curvature estimate: try once along the gradient.
        self.minimizer.restart()
        if self.minimizer.advance():
            return None
        trouble = self.minimizer.met_not_finite
        return CompletionStatus.NUMERICAL_TROUBLE if trouble else CompletionStatus.STALLED

    def _leave_checkpoint(self) -> None:
        iteration = len(self.history)
        if self.checkpoint is not None and iteration > 0:
            self.checkpoint.offer(iteration, self._state)

    def _state(self) -> State:
        return {
            "variables": self._copy(),
            "minimizer": self.minimizer.state(),
            "stopping": self.stopping.state(),
            "history": self.history.columns(),
            "best": self.best,
        }

    @torch.no_grad()
    def _resume(self, state: State) -> None:
        assert isinstance(state, dict), "as `_state` returned it"
        for x, kept in zip(self.objective.variables, state["variables"], strict=True):
            x.copy_(kept)
        self.minimizer.resume(state["minimizer"])
        self.stopping.resume(state["stopping"])
        self.history, self.best = History(**state["history"]), state["best"]
        self.start -= self.history.seconds[-1]

    def _copy(self) -> list[Tensor]:
        return [x.detach().clone() for x in self.objective.variables]

    @torch.no_grad()
    def _restore_best(self) -> None:
        for x, kept in zip(self.objective.variables, self.best, strict=True):
            x.copy_(kept)
            x.grad = None


def _minimizer(objective: Objective, optimizer: OptimizerChoice) -> Minimizer:
    if optimizer == "lbfgs":
        return QuasiNewton(objective)
    if callable(optimizer):
        return FirstOrder(objective, optimizer)
    return FirstOrder(objective, lambda variables: Adam(variables, lr=_ADAM_STEP))
