"""What `complete` minimises, as a function of the free parameters and the biases."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_opt.completion.bias import AdditiveBias
from lowrank_opt.kernels import observed_entries, observed_squared_loss
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations import Parameterization

Loss: TypeAlias = Literal["squared", "absolute", "huber"] | Callable[[Tensor], Tensor]


class Objective:
    r"""Loss on the observed entries plus ridge penalties, divided by the loss of the mean alone.

    :math:`\sum_k w_k\, \rho(W_{i_k j_k} + a_{i_k} + b_{j_k} + \mu - v_k)
    + \tfrac12 \lambda \|\theta\|^2 + \tfrac12 \lambda_b (\|a\|^2 + \|b\|^2)`
    with :math:`\rho(e) = e^2/2`, :math:`|e|` or Huber's function. The division makes step lengths
    and tolerances independent of the number and the unit of the values.

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
        self.centred = observations.with_values(observations.values - bias.mean)
        self.loss: Loss = loss
        self.penalty, self.bias_penalty = penalty, bias_penalty
        self.free = [p for p in parameterization.parameters() if p.requires_grad]
        self.biases = (bias.rows.clone(), bias.cols.clone())
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
        total = self._data_term(self.parameterization(), self.centred)
        if self.penalty > 0:
            total = total + 0.5 * self.penalty * _squares(self.free)
        if self.fit_bias and self.bias_penalty > 0:
            total = total + 0.5 * self.bias_penalty * _squares(self.biases)
        return total / self.unit

    @torch.no_grad()
    def operator(self) -> LowRankOperator:
        """Return the present matrix, zero in rows and columns without entries, detached."""
        left, scale, right = self.parameterization().detach().clone()
        for factor, seen in zip((left, right), self.seen, strict=True):
            factor[~seen] = 0
        return LowRankOperator(left, scale, right)

    def bias(self) -> AdditiveBias:
        """Return the present biases, detached."""
        return AdditiveBias(self.mean, *(b.detach().clone() for b in self.biases))

    @torch.no_grad()
    def rmse(self, observations: Observations) -> float:
        """Return the root of the (weighted) mean squared error on other entries."""
        centred = observations.with_values(observations.values - self.mean)
        loss = observed_squared_loss(
            self.operator(), centred, bias=self.biases, dtype=torch.float64
        )
        w = observations.weights
        return float((loss / (len(observations) if w is None else w.double().sum())).sqrt())

    def _data_term(self, op: LowRankOperator, observations: Observations) -> Tensor:
        bias = self.biases if self.fit_bias else None
        if self.loss == "squared":
            return 0.5 * observed_squared_loss(op, observations, bias=bias, dtype=torch.float64)
        residuals = observed_entries(op, observations, bias=bias) - observations.values
        return self._weighted_sum(_elementwise(self.loss)(residuals))

    def _weighted_sum(self, losses: Tensor) -> Tensor:
        w = self.centred.weights
        return (losses if w is None else losses * w).sum(dtype=torch.float64)

    def _unit(self) -> float:
        """Return the loss of predicting the mean, or the total weight where that is zero."""
        rho = _elementwise(self.loss)
        unit = float(self._weighted_sum(rho(self.centred.values).detach()))
        return unit or float(self._weighted_sum(torch.ones_like(self.centred.values)))


def _elementwise(loss: Loss) -> Callable[[Tensor], Tensor]:
    if callable(loss):
        return loss
    return {"squared": _half_square, "absolute": torch.abs, "huber": _huber}[loss]


def _half_square(residuals: Tensor) -> Tensor:
    return 0.5 * residuals.square()


def _huber(residuals: Tensor) -> Tensor:
    return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none")


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
