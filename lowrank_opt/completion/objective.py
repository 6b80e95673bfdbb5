"""What `complete` minimises, as a function of the free parameters and the biases."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_opt.completion.bias import AdditiveBias
from lowrank_opt.kernels import observed_entries, observed_squared_loss
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization

Loss: TypeAlias = Literal["squared", "absolute", "huber"] | Callable[[Tensor], Tensor]


class Objective:
    r"""Loss on the observed entries plus ridge penalties, divided by the loss of the mean alone.

    :math:`\sum_k w_k\, \rho(W_{i_k j_k} + a_{i_k} + b_{j_k} + \mu - v_k)
    + \tfrac12 \lambda \|\theta\|^2 + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)`
    with :math:`\rho(e) = e^2/2`, :math:`|e|` or Huber's function. The division makes step lengths
    and tolerances independent of the number and the unit of the values; inside, values and biases
    are in units of the root mean square of the centred values.

    Parameters
    ----------
    parameterization : Parameterization
        Trained in place.
    observations : Observations
    bias : AdditiveBias
        The start; kept as it is unless `fit_bias`.
    fit_bias : bool
    loss : {"squared", "absolute", "huber"} or callable
        A callable maps residuals to losses, entry by entry.
    penalty, bias_penalty : float
    """

    def __init__(
        self,
        parameterization: Parameterization,
        observations: Observations,
        bias: AdditiveBias,
        *,
        fit_bias: bool,
        loss: Loss,
        penalty: float,
        bias_penalty: float,
    ) -> None:
        self.parameterization = parameterization
        self.mean = bias.mean
        self.spread = _root_mean_square(observations, bias.mean)
        self.centred = self._centred(observations)
        self.loss: Loss = loss
        self.penalty, self.bias_penalty = penalty, bias_penalty
        self.free = [p for p in parameterization.parameters() if p.requires_grad]
        self.biases = (bias.rows / self.spread, bias.cols / self.spread)
        self.fit_bias = fit_bias
        for b in self.biases:
            b.requires_grad_(fit_bias)
        self.seen = _seen(observations)
        self.unit = self._unit()

    @property
    def variables(self) -> list[Tensor]:
        """All tensors that are optimised."""
        return [*self.free, *(self.biases if self.fit_bias else ())]

    def value(self) -> Tensor:
        """Return the objective in its own unit, a float64 scalar."""
        total = self._data_term() / self.unit
        if self.penalty > 0:
            total = total + (0.5 * self.penalty / self.unit) * _squares(self.free)
        if self.fit_bias and self.bias_penalty > 0:
            share = 0.5 * self.bias_penalty * (self.spread / self.unit) * self.spread
            total = total + share * _squares(self.biases)
        return total

    @torch.no_grad()
    def operator(self) -> LowRankOperator:
        """Return the present matrix, detached.

        Rows and columns without entries are zero, unless frozen frames or features speak for them.
        """
        return self.parameterization.seen_factors(*self.seen).detach().clone()

    def bias(self) -> AdditiveBias:
        """Return the present biases, detached."""
        return AdditiveBias(self.mean, *(self.spread * b.detach() for b in self.biases))

    @torch.no_grad()
    def rmse(self, observations: Observations) -> float:
        """Return the root of the (weighted) mean squared error on other entries."""
        op = self.operator() * (1 / self.spread)
        centred = self._centred(observations)
        loss = observed_squared_loss(op, centred, bias=self.biases, dtype=torch.float64)
        return self.spread * float((loss / _total_weight(observations)).sqrt())

    def _centred(self, observations: Observations) -> Observations:
        return observations.with_values((observations.values - self.mean) / self.spread)

    def _data_term(self) -> Tensor:
        op = self.parameterization() * (1 / self.spread)
        bias = self.biases if self.fit_bias else None
        if self.loss == "squared":
            loss = observed_squared_loss(op, self.centred, bias=bias, dtype=torch.float64)
            return 0.5 * self.spread**2 * loss
        residuals = observed_entries(op, self.centred, bias=bias) - self.centred.values
        return self._weighted_sum(_elementwise(self.loss)(self.spread * residuals))

    def _weighted_sum(self, losses: Tensor) -> Tensor:
        w = self.centred.weights
        return (losses if w is None else losses * w).sum(dtype=torch.float64)

    def _unit(self) -> float:
        """Return the loss of predicting the mean, or the total weight where that is zero."""
        if self.loss == "squared":
            unit = 0.5 * self.spread**2 * _total_weight(self.centred)
        else:
            losses = _elementwise(self.loss)(self.spread * self.centred.values)
            unit = float(self._weighted_sum(losses.detach()))
        return unit if unit > 0 and math.isfinite(unit) else _total_weight(self.centred)


def _elementwise(loss: Loss) -> Callable[[Tensor], Tensor]:
    if callable(loss):
        return loss
    assert loss != "squared", "the fused kernel computes the squared loss"
    return {"absolute": torch.abs, "huber": _huber}[loss]


def _huber(residuals: Tensor) -> Tensor:
    return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none")


def _root_mean_square(observations: Observations, mean: float) -> float:
    """Return the root of the (weighted) mean squared deviation; one where that is zero."""
    deviations, w = observations.values.double() - mean, observations.weights
    peak = float(deviations.abs().max()) or 1.0
    squares = (deviations / peak).square()
    total = (squares if w is None else squares * w).sum() / _total_weight(observations)
    return peak * math.sqrt(total) or 1.0


def _total_weight(observations: Observations) -> float:
    w = observations.weights
    return float(len(observations)) if w is None else float(w.sum(dtype=torch.float64))


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.square().sum(dtype=torch.float64) for x in tensors]).sum()


def _seen(observations: Observations) -> tuple[Tensor, Tensor]:
    """Return where rows and columns have an entry of positive weight, two masks."""
    w = observations.weights
    counted = slice(None) if w is None else w > 0
    rows, cols = observations.rows[counted], observations.cols[counted]
    masks = (torch.zeros(size, dtype=torch.bool, device=rows.device) for size in observations.shape)
    row_mask, col_mask = masks
    row_mask[rows], col_mask[cols] = True, True
    return row_mask, col_mask
