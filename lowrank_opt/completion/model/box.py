"""Predictions that stay in a range, such as that of a rating scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.completion.model.links import Clip, Link
from lowrank_opt.completion.model.losses import EntryLoss, Loss, Residual, Squared, entry_loss
from lowrank_opt.errors import ObservationError, OptionError
from lowrank_opt.observations import Observations


@dataclass(frozen=True)
class InRange(EntryLoss):
    r"""A loss of residuals for values in [low, high], with predictions ``clip(score, low, high)``.

    Every prediction is in the range, to the last bit. A score beyond an end is right for a value
    at that end and costs nothing there; for all other values it costs what it did:
    :math:`\rho(\min(s - v, 0))` for v = high, :math:`\rho(\max(s - v, 0))` for v = low,
    :math:`\rho(s - v)` between. This is convex in s where :math:`\rho` is, as smooth, never less
    than the loss of the clipped prediction, and its gradient vanishes only where that loss does:
    unlike a squashing function, it can be trained from anywhere.

    Parameters
    ----------
    low, high : float
        Finite, low < high.
    loss : str or callable
        A loss of residuals: "squared", "absolute", "huber" or a function.

    Raises
    ------
    OptionError
        If the range is empty, or the loss is not one of residuals.

    References
    ----------
    The loss of censored regression: Powell (1984), Least absolute deviations estimation for the
    censored regression model, with censoring points at both ends.

    Examples
    --------
    >>> five_stars = InRange(1.0, 5.0)
    >>> five_stars.losses(torch.tensor([6.0, 6.0]), torch.tensor([5.0, 4.0]), torch.empty(0))
    tensor([0., 2.])
    """

    on_value_scale = True
    low: float
    high: float
    loss: Loss = "squared"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise OptionError(
                f"a range must be finite, low < high; got {self.low!r} and {self.high!r}"
            )
        if not isinstance(entry_loss(self.loss), Squared | Residual):
            raise OptionError(
                f"a range needs a loss of residuals; got loss={self.loss!r}, whose predictions "
                "are means of the values already"
            )

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where its loss is: it costs that on one side of an end, and nothing on the other."""
        return entry_loss(self.loss).convex

    def check(self, observations: Observations) -> None:
        values = observations.values
        outside = values[(values < self.low) | (values > self.high)]
        if len(outside) > 0:
            raise ObservationError(
                f"values must be in the range [{self.low}, {self.high}] of predictions; got "
                f"{len(outside)} outside, the first {float(outside[0])!r}: widen the range"
            )

    def losses(self, scores: Tensor, values: Tensor, free: Tensor) -> Tensor:
        e = scores - values
        e = torch.where((values >= self.high) & (e > 0), 0.0, e)
        e = torch.where((values <= self.low) & (e < 0), 0.0, e)
        return entry_loss(self.loss).losses(e, torch.zeros_like(e), free)

    def link(self, free: Tensor, observations: Observations) -> Link:
        return Clip(self.low, self.high)
