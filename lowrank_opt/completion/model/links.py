"""From the scores of a model to predictions on the scale of the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError


@dataclass(frozen=True)
class Link:
    r"""The mean of a value as a function of its score s, named so that a file can hold it.

    ``"identity"``: s. ``"clip"``, numbers (low, high): s, or the nearest of the two ends.
    ``"logistic"``, numbers (low, high): :math:`l + (h - l) / (1 + e^{-s})`. ``"exponential"``:
    :math:`e^s`. ``"ordered_probit"``, numbers: levels :math:`v_1 < \dots < v_L`, then thresholds
    :math:`t_1 \le \dots \le t_{L-1}`: :math:`v_1 + \sum_k (v_{k+1} - v_k)\, \Phi(s - t_k)`.

    Parameters
    ----------
    name : str
    numbers : tuple of float

    Raises
    ------
    ObservationError
        If the name is unknown, or has another count of numbers.

    Examples
    --------
    >>> Link("logistic", (0.0, 1.0)).mean(torch.zeros(1))
    tensor([0.5000])
    >>> Link("ordered_probit", (1.0, 2.0, 3.0, -1.0, 1.0)).mean(torch.tensor([0.0, 9.0]))
    tensor([2., 3.])
    """

    name: str = "identity"
    numbers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in _MEANS or not _fits(self.name, len(self.numbers)):
            raise ObservationError(
                f"a link is one of {', '.join(map(repr, _MEANS))} with its numbers; got "
                f"{self.name!r} with {len(self.numbers)} numbers"
            )

    def mean(self, scores: Tensor) -> Tensor:
        """Return the predictions for scores of any shape, in their dtype."""
        return _MEANS[self.name](scores, self.numbers)


def _fits(name: str, count: int) -> bool:
    if name == "ordered_probit":
        return count >= 3 and count % 2 == 1
    return count == {"identity": 0, "exponential": 0, "clip": 2, "logistic": 2}[name]


def _same(scores: Tensor, _numbers: tuple[float, ...]) -> Tensor:
    return scores


def _clip(scores: Tensor, numbers: tuple[float, ...]) -> Tensor:
    low, high = numbers
    return scores.clamp(low, high)


def _logistic(scores: Tensor, numbers: tuple[float, ...]) -> Tensor:
    low, high = numbers
    return low + (high - low) * scores.sigmoid()


def _exponential(scores: Tensor, _numbers: tuple[float, ...]) -> Tensor:
    return scores.exp()


def _ordered_probit(scores: Tensor, numbers: tuple[float, ...]) -> Tensor:
    count = (len(numbers) + 1) // 2
    levels, thresholds = numbers[:count], numbers[count:]
    mean = torch.full_like(scores, levels[0])
    for low, high, t in zip(levels, levels[1:], thresholds, strict=False):
        mean = mean + (high - low) * torch.special.ndtr(scores - t)
    return mean.clamp(levels[0], levels[-1])


_MEANS: dict[str, Callable[[Tensor, tuple[float, ...]], Tensor]] = {
    "identity": _same,
    "clip": _clip,
    "logistic": _logistic,
    "exponential": _exponential,
    "ordered_probit": _ordered_probit,
}

IDENTITY = Link()
