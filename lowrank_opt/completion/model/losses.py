r"""Losses of a score :math:`s = W_{ij} + \mu + a_i + b_j` against a value, entry by entry.

Some are functions of the residual on the scale of the values; others are the negative
log-likelihood of a distribution with s as its natural or latent parameter, half a deviance where
that vanishes at a perfect fit. The latter may have free parameters of their own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_opt.completion.model.links import (
    IDENTITY,
    Exponential,
    Link,
    LogisticMean,
    OrderedMean,
)
from lowrank_opt.completion.model.ordinal import (
    free_of,
    negative_log_likelihood,
    thresholds_for,
    thresholds_of,
)
from lowrank_opt.errors import ObservationError, OptionError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import distinct, largest, total

LossName: TypeAlias = Literal[
    "squared", "absolute", "huber", "logistic", "ordered_probit", "poisson"
]


class EntryLoss(ABC):
    """A loss of scores, entry by entry.

    Attributes
    ----------
    on_value_scale : bool
        Whether a score is a prediction: then fits start from an additive model of the values, in
        units of their spread.
    convex : bool
        Whether the loss is a convex function of the score, free parameters held fixed.
    """

    on_value_scale: ClassVar[bool]
    convex: bool = False

    def check(self, observations: Observations) -> None:
        """Raise ObservationError unless the loss is defined at these values."""
        _ = observations

    def of(self, observations: Observations) -> EntryLoss:
        """Return the loss with what it has to know of all entries: itself, if that is nothing."""
        _ = observations
        return self

    def start(self, observations: Observations, *, intercept: bool) -> Tensor:
        """Return free parameters of the loss to start from, float64; empty if there are none."""
        _ = intercept
        return observations.values.new_empty(0, dtype=torch.float64)

    @abstractmethod
    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        """Return the losses, nonnegative, shape (k,), differentiable in scores and `free`."""

    def intercept(self, free: Tensor) -> float:
        """Return what is added to all scores."""
        _ = free
        return 0.0

    def link(self, free: Tensor, observations: Observations) -> Link:
        """Return the mean of a value given its score, the intercept included."""
        _ = free, observations
        return IDENTITY


@dataclass(frozen=True)
class Residual(EntryLoss):
    """A function of ``score - value``.

    Parameters
    ----------
    function : callable
        Maps a tensor of residuals to losses.
    convex : bool
        Whether it is; of a function nothing is known.
    """

    on_value_scale = True
    function: Callable[[Tensor], Tensor]
    convex: bool = False

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        return self.function(scores - values)


@dataclass(frozen=True)
class Squared(EntryLoss):
    """Half the squared residual: the one for which a fused kernel exists.

    Squares, in float64, must neither overflow nor vanish: a fit whose squares are all zero would
    pass for an exact one.
    """

    on_value_scale = True
    convex = True

    def check(self, observations: Observations) -> None:
        limits = torch.finfo(torch.float64)
        low, high = math.sqrt(limits.tiny), math.sqrt(limits.max)
        peak = float(largest(observations, observations.values.abs()).double())
        if not (peak == 0 or low <= peak <= high):
            raise ObservationError(
                f"values must be of a size between {low:.0e} and {high:.0e} under the squared "
                f"loss, or their squares overflow or vanish; the largest has {peak:.1e}: rescale "
                "them, and radius or penalty with them"
            )

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        return (scores - values).square() / 2


@dataclass(frozen=True)
class Logistic(EntryLoss):
    r""":math:`\log(1 + e^{-y s})` with y = 1 for the larger of two values and -1 for the smaller.

    Values are in {0, 1} or in {-1, 1}. Predictions are means: the probability of 1, or twice that
    minus one.
    """

    on_value_scale = False
    convex = True

    def check(self, observations: Observations) -> None:
        values = observations.values
        low = -1.0 if bool(largest(observations, (values < 0).double())) else 0.0
        wrong = values[(values != low) & (values != 1)]
        if len(wrong) > 0:
            raise ObservationError(
                "the logistic loss needs values in {0, 1} or in {-1, 1}; got "
                f"{len(wrong)} others, the first {float(wrong[0])!r}: compare with a threshold, or "
                "use loss='ordered_probit' for more levels"
            )

    def start(self, observations: Observations, *, intercept: bool) -> Tensor:
        if not intercept:
            return observations.values.new_empty(0, dtype=torch.float64)
        share = _mean(observations, (observations.values > 0).double())
        return torch.logit(share, eps=1e-6).reshape(1)

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        return -F.logsigmoid((scores + free.sum()) * torch.where(values > 0, 1.0, -1.0))

    def intercept(self, free: Tensor) -> float:
        return float(free.detach().sum())

    def link(self, free: Tensor, observations: Observations) -> Link:
        negative = bool(largest(observations, (observations.values < 0).double()))
        return LogisticMean(-1.0 if negative else 0.0, 1.0)


@dataclass(frozen=True)
class Poisson(EntryLoss):
    r""":math:`e^s - v s - v + v \log v`, half the deviance of a count v with mean :math:`e^s`.

    Values are nonnegative, not all zero; they need not be whole (a quasi-likelihood with variance
    proportional to the mean).
    """

    on_value_scale = False
    convex = True

    def check(self, observations: Observations) -> None:
        values = observations.values
        positive = bool(largest(observations, (values > 0).double()))
        if not (positive and bool((values >= 0).all())):
            raise ObservationError(
                "the Poisson loss needs nonnegative values, not all zero; got values from "
                f"{float(values.min())!r} to {float(values.max())!r}: shift them, or use another "
                "loss"
            )

    def start(self, observations: Observations, *, intercept: bool) -> Tensor:
        if not intercept:
            return observations.values.new_empty(0, dtype=torch.float64)
        return _mean(observations, observations.values.double()).log().reshape(1)

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        s, v = scores.double() + free.sum(), values.double()
        return s.exp() - v * s - v + torch.xlogy(v, v)

    def intercept(self, free: Tensor) -> float:
        return float(free.detach().sum())

    def link(self, free: Tensor, observations: Observations) -> Link:
        return Exponential()


@dataclass(frozen=True)
class OrderedProbit(EntryLoss):
    r""":math:`-\log(\Phi(t_k - s) - \Phi(t_{k-1} - s))` for the k-th of the distinct values.

    The thresholds t are learned with the rest, from free parameters that keep them in order; they
    take the place of an intercept. Values are the levels themselves; only their order matters for
    the fit. Predictions are means.

    Parameters
    ----------
    levels : tuple of float
        Ascending; by default those among the values at hand.
    """

    levels: tuple[float, ...] = ()

    on_value_scale = False
    convex = True

    def of(self, observations: Observations) -> OrderedProbit:
        return OrderedProbit(tuple(self._levels(observations).tolist()))

    def check(self, observations: Observations) -> None:
        count = len(self._levels(observations))
        if not 2 <= count <= _MOST_LEVELS:
            raise ObservationError(
                f"the ordered probit loss needs 2 to {_MOST_LEVELS} distinct values; got {count}: "
                "use loss='squared' for values on a continuous scale"
            )

    def start(self, observations: Observations, *, intercept: bool) -> Tensor:
        levels, w = self._levels(observations), observations.weights
        index = torch.searchsorted(levels, observations.values.double())
        mass = torch.ones_like(observations.values) if w is None else w
        counts = torch.bincount(index, weights=mass.double(), minlength=len(levels))
        part = observations.part
        # Half an entry more in each level keeps thresholds finite where weights are zero.
        shares = (counts if part is None else part.total(counts)) + 0.5
        return free_of(thresholds_for(shares / shares.sum()))

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        known = values.double().unique() if not self.levels else self._stated(values)
        levels = torch.searchsorted(known, values.double())
        return negative_log_likelihood(scores.double(), levels, free)

    def link(self, free: Tensor, observations: Observations) -> Link:
        levels = self._levels(observations).tolist()
        return OrderedMean(tuple(levels), tuple(thresholds_of(free.detach()).tolist()))

    def _levels(self, observations: Observations) -> Tensor:
        values = observations.values.double()
        if self.levels:
            return self._stated(values)
        return distinct(observations, values, _MOST_LEVELS)

    def _stated(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64, device=like.device)


_MOST_LEVELS = 100

_NAMED: dict[str, EntryLoss] = {
    "squared": Squared(),
    "absolute": Residual(torch.abs, convex=True),
    "huber": Residual(
        lambda e: F.huber_loss(e, torch.zeros_like(e), reduction="none"), convex=True
    ),
    "logistic": Logistic(),
    "ordered_probit": OrderedProbit(),
    "poisson": Poisson(),
}
Loss: TypeAlias = LossName | EntryLoss | Callable[[Tensor], Tensor]


def entry_loss(loss: Loss) -> EntryLoss:
    """Return the loss of a name, or of a function of residuals.

    Raises
    ------
    OptionError
        If the name is unknown.

    Examples
    --------
    >>> free = torch.empty(0)
    >>> entry_loss("logistic").losses(torch.tensor([0.0, 9.0]), torch.tensor([0.0, 1.0]), free)
    tensor([6.9315e-01, 1.2340e-04])
    """
    if isinstance(loss, EntryLoss):
        return loss
    if isinstance(loss, str) and loss in _NAMED:
        return _NAMED[loss]
    if callable(loss):
        return Residual(loss)
    names = ", ".join(map(repr, _NAMED))
    raise OptionError(f"loss must be {names} or a callable; got loss={loss!r}")


def _mean(observations: Observations, values: Tensor) -> Tensor:
    w = observations.weights
    mass = torch.ones_like(values) if w is None else w.double()
    return total(observations, mass * values) / total(observations, mass)
