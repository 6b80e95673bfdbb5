"""Fit a parameterization, and biases, to observed entries."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from lowrank_opt.completion.bias import fit_additive_bias, no_bias
from lowrank_opt.completion.checkpoint import Checkpoint, State
from lowrank_opt.completion.checks import (
    check_amounts,
    check_choices,
    check_counts,
    check_parameterization_fits,
)
from lowrank_opt.completion.convex_problem import convex_problem_of
from lowrank_opt.completion.held_out import training_and_validation
from lowrank_opt.completion.history import History, Iteration
from lowrank_opt.completion.minimizers import FirstOrder, Minimizer, QuasiNewton
from lowrank_opt.completion.objective import Loss, Objective
from lowrank_opt.completion.progress import Progress, reporting
from lowrank_opt.completion.result import CompletionResult
from lowrank_opt.completion.solvers import SolverChoice, SolverOptions, solve
from lowrank_opt.completion.status import CompletionStatus
from lowrank_opt.completion.stopping import Stopping
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations.base import Parameterization

OptimizerChoice: TypeAlias = Literal["lbfgs", "adam"] | Callable[[Sequence[Tensor]], Optimizer]

_ADAM_STEP = 0.01


def complete(
    observations: Observations,
    parameterization: Parameterization,
    *,
    solver: SolverChoice = "gradient",
    loss: Loss = "squared",
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
    loss : {"squared", "absolute", "huber"} or callable
        :math:`\rho(e) = e^2/2`, :math:`|e|`, or :math:`e^2/2` up to 1 and :math:`|e| - 1/2`
        beyond. A callable maps a tensor of residuals to losses, entry by entry.
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
        If values overflow in the dtype of the parameterization, or a share cannot be held out.
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
    check_choices(loss=loss, bias=bias, optimizer=optimizer, progress=progress)
    check_amounts(bias_penalty=bias_penalty, penalty=penalty, tolerance=tolerance)
    check_counts(max_iterations=max_iterations, patience=patience)
    if solver != "gradient":
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
        check_parameterization_fits(parameterization, observations)
        return solve(solver, observations, parameterization, options)
    dtype = check_parameterization_fits(parameterization, observations)
    fitted, held_out = training_and_validation(observations.to(dtype=dtype), validation, generator)
    fit_bias = bias is not None
    start = fit_additive_bias(fitted, penalty=bias_penalty) if fit_bias else no_bias(fitted)
    objective = Objective(
        parameterization,
        fitted,
        start,
        fit_bias=fit_bias,
        loss=loss,
        penalty=penalty,
        bias_penalty=bias_penalty,
    )
    stopping = Stopping(dtype, tolerance=tolerance, patience=patience)
    fit = _Fit(objective, _minimizer(objective, optimizer), stopping, held_out, checkpoint)
    with reporting(progress, max_iterations) as report:
        status = fit.run(max_iterations, report)
    problem = convex_problem_of(
        parameterization,
        fitted,
        loss=loss,
        penalty=penalty,
        bias_penalty=bias_penalty if fit_bias else None,
    )
    return CompletionResult(
        objective.operator(), objective.bias(), status, fit.history, problem=problem
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
