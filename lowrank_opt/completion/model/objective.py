"""What `complete` minimises, as a function of the free parameters and the biases."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_opt.completion.model.bias import AdditiveBias, fit_additive_bias, no_bias
from lowrank_opt.completion.model.cut_map import CutMap
from lowrank_opt.completion.model.links import IDENTITY, Link
from lowrank_opt.completion.model.losses import EntryLoss, Residual, Squared
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.model.seen import masked, seen_factors
from lowrank_opt.kernels import observed_entries, observed_squared_loss
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import (
    entry_count,
    is_cut,
    largest,
    over_lines,
    shared,
    total,
)
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization


class Objective:
    r"""Loss on the observed entries plus ridge penalties, divided by the loss of the mean alone.

    :math:`\sum_k w_k\, \rho(W_{i_k j_k} + a_{i_k} + b_{j_k} + \mu, v_k)
    + \tfrac12 \lambda \|\theta\|^2 + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)`
    with a loss :math:`\rho` of scores and values. The division makes step lengths and tolerances
    independent of the number and the unit of the values. Where scores are predictions, they are,
    inside, in units of the root mean square of the centred values.

    Parameters
    ----------
    problem : CompletionProblem
        Its parameterization is trained in place.
    fitted : Observations
        Of its entries, those that are fitted.

    Raises
    ------
    ObservationError
        If the loss is not defined at the values.
    """

    def __init__(self, problem: CompletionProblem, fitted: Observations) -> None:
        assert isinstance(problem.model, Parameterization), "the traits let no other model pass"
        parameterization, observations = problem.model, fitted
        self.parameterization: Parameterization
        self.observations: Observations
        self.parameterization, self.observations = parameterization, observations
        self.cut: CutMap | None = (
            CutMap(parameterization, observations) if is_cut(observations) else None
        )
        self.loss: EntryLoss = problem.entry_loss.of(observations)
        self.loss.check(observations)
        self.penalty: float
        self.bias_penalty: float
        self.penalty, self.bias_penalty = problem.penalty, problem.bias_penalty
        fit_bias = problem.bias is not None
        self.fit_bias: bool = fit_bias
        start = self._start()
        self.mean: float = start.mean
        on_scale = self.loss.on_value_scale
        self.spread: float = _root_mean_square(observations, self.mean) if on_scale else 1.0
        self.centred: Observations = self._centred(observations)
        self.free: list[torch.nn.Parameter] = [
            p for p in parameterization.parameters() if p.requires_grad
        ]
        self.biases: tuple[Tensor, Tensor] = (start.rows / self.spread, start.cols / self.spread)
        for b in self.biases:
            b.requires_grad_(fit_bias)
        self.extra: Tensor = self.loss.start(observations, intercept=fit_bias)
        self.extra.requires_grad_(self.extra.numel() > 0)
        self.seen: tuple[Tensor, Tensor] = _seen(observations)
        self.unit: float = self._unit()

    def _start(self) -> AdditiveBias:
        if self.loss.on_value_scale and self.fit_bias:
            return fit_additive_bias(self.observations, penalty=self.bias_penalty)
        return no_bias(self.observations)

    @property
    def variables(self) -> list[Tensor]:
        """All tensors that are optimised."""
        biases = self.biases if self.fit_bias else ()
        return [*self.free, *biases, *([self.extra] if self.extra.requires_grad else [])]

    @property
    def of_own_lines(self) -> list[bool]:
        """Which of `variables` have lines of this process's rows or columns, others elsewhere."""
        if self.cut is None:
            return [False for _ in self.variables]
        pairs = zip(self.cut.names, self.biases, strict=True)
        own = {
            id(x)
            for name, bias in pairs
            if name
            for x in (self.parameterization.get_parameter(name), bias)
        }
        return [id(x) in own for x in self.variables]

    def value(self) -> Tensor:
        """Return the objective in its own unit, a float64 scalar."""
        total = self._data_term() / self.unit
        if self.penalty > 0:
            total = total + (0.5 * self.penalty / self.unit) * self._squares(self.free)
        if self.fit_bias and self.bias_penalty > 0:
            share = 0.5 * self.bias_penalty * (self.spread / self.unit) * self.spread
            total = total + share * self._squares(self.biases)
        return total

    def _squares(self, tensors: Sequence[Tensor]) -> Tensor:
        own = {id(x) for x, of in zip(self.variables, self.of_own_lines, strict=True) if of}
        sums = [x.square().sum(dtype=torch.float64) for x in tensors]
        return torch.stack(
            [
                over_lines(self.observations, s, 0) if id(x) in own else s
                for s, x in zip(sums, tensors, strict=True)
            ]
        ).sum()

    @torch.no_grad()
    def operator(self) -> LowRankOperator:
        """Return the present matrix, detached.

        Rows and columns without entries are zero, unless frozen frames or features speak for them.
        """
        if self.cut is not None:
            return masked(self.cut(), *self.seen).detach().clone()
        return seen_factors(self.parameterization, *self.seen).detach().clone()

    def bias(self) -> AdditiveBias:
        """Return the present biases, detached."""
        mean = self.mean + self.loss.intercept(self.extra)
        return AdditiveBias(mean, *(self.spread * b.detach() for b in self.biases))

    @torch.no_grad()
    def move_biases(self, bias: AdditiveBias) -> None:
        """Set the biases, where they are fitted; the mean stays."""
        if self.fit_bias:
            for x, new in zip(self.biases, (bias.rows, bias.cols), strict=True):
                x.copy_(new / self.spread)

    def link(self) -> Link:
        """Return what takes scores to predictions."""
        return self.loss.link(self.extra, self.observations)

    @torch.no_grad()
    def rmse(self, observations: Observations) -> float:
        """Return the root of the (weighted) mean squared error of predictions of other entries."""
        op, mass = self.operator() * (1 / self.spread), _total_weight(observations)
        centred, link = self._centred(observations), self.link()
        if link == IDENTITY:
            loss = observed_squared_loss(op, centred, bias=self.biases, dtype=torch.float64)
            return self.spread * float((loss / mass).sqrt())
        entries = self.spread * observed_entries(op, centred, bias=self.biases).double()
        scores = entries + self.mean + self.loss.intercept(self.extra)
        errors = link.mean(scores) - observations.values.double()
        return float((self._weighted_sum(errors.square(), observations) / mass).sqrt())

    def _centred(self, observations: Observations) -> Observations:
        return observations.with_values((observations.values - self.mean) / self.spread)

    def _data_term(self) -> Tensor:
        made = self.parameterization if self.cut is None else self.cut
        op = made() * (1 / self.spread)
        bias = self.biases if self.fit_bias else None
        if isinstance(self.loss, Squared):
            loss = observed_squared_loss(op, self.centred, bias=bias, dtype=torch.float64)
            return 0.5 * self.spread**2 * loss
        return self._loss_of(observed_entries(op, self.centred, bias=bias))

    def _loss_of(self, entries: Tensor) -> Tensor:
        """Return the loss of centred and scaled scores."""
        values, scores = self.observations.values, self.spread * entries
        extra = shared(self.observations, self.extra)
        if isinstance(self.loss, Residual):
            # Without the mean, beside which small residuals would be rounded.
            losses = self.loss.losses(scores, self.spread * self.centred.values, extra)
        else:
            losses = self.loss.losses(scores.double() + self.mean, values.double(), extra)
        return self._weighted_sum(losses, self.observations)

    def _weighted_sum(self, losses: Tensor, observations: Observations) -> Tensor:
        w = observations.weights
        return total(observations, losses if w is None else losses * w)

    @torch.no_grad()
    def _unit(self) -> float:
        """Return the loss of predicting the mean, or the total weight where that is zero."""
        if isinstance(self.loss, Squared):
            unit = 0.5 * self.spread**2 * _total_weight(self.centred)
        else:
            unit = float(self._loss_of(torch.zeros_like(self.centred.values)))
        return unit if unit > 0 and math.isfinite(unit) else _total_weight(self.centred)


def _root_mean_square(observations: Observations, mean: float) -> float:
    """Return the root of the (weighted) mean squared deviation; one where that is zero."""
    deviations, w = observations.values.double() - mean, observations.weights
    peak = float(largest(observations, deviations.abs())) or 1.0
    squares = (deviations / peak).square()
    sums = total(observations, squares if w is None else squares * w)
    return peak * math.sqrt(sums / _total_weight(observations)) or 1.0


def _total_weight(observations: Observations) -> float:
    w = observations.weights
    return float(entry_count(observations)) if w is None else float(total(observations, w))


def _seen(observations: Observations) -> tuple[Tensor, Tensor]:
    """Return where rows and columns have an entry of positive weight, two masks."""
    w = observations.weights
    counted = slice(None) if w is None else w > 0
    rows, cols = observations.rows[counted], observations.cols[counted]
    m, n = observations.shape
    part, row_counts = observations.part, torch.bincount(rows, minlength=m)
    if part is None:
        return row_counts > 0, torch.bincount(cols, minlength=n) > 0
    found = row_counts if part.cut else part.total(row_counts)
    return found > 0, part.column_counts(cols) > 0
