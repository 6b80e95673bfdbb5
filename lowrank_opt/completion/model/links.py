"""From the scores of a model to predictions on the scale of the values: one class for each link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError


class Link(ABC):
    """The mean of a value as a function of its score s: a frozen dataclass of numbers.

    Attributes
    ----------
    name : str
        Under which a file holds it.
    """

    name: ClassVar[str]

    @abstractmethod
    def mean(self, scores: Tensor) -> Tensor:
        """Return the predictions for scores of any shape, in their dtype."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """What a file holds besides the name."""
        return astuple(self)  # pyright: ignore[reportArgumentType]

    @classmethod
    def of(cls, numbers: tuple[float, ...]) -> Self:
        """Return the link with these numbers."""
        return cls(*numbers)


@dataclass(frozen=True)
class Identity(Link):
    """s itself."""

    name = "identity"

    def mean(self, scores: Tensor) -> Tensor:
        return scores


@dataclass(frozen=True)
class Clip(Link):
    """s, or the nearer of two ends."""

    name = "clip"
    low: float
    high: float

    def mean(self, scores: Tensor) -> Tensor:
        return scores.clamp(self.low, self.high)


@dataclass(frozen=True)
class LogisticMean(Link):
    r""":math:`l + (h - l) / (1 + e^{-s})`.

    Examples
    --------
    >>> LogisticMean(0.0, 1.0).mean(torch.zeros(1))
    tensor([0.5000])
    """

    name = "logistic"
    low: float
    high: float

    def mean(self, scores: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * scores.sigmoid()


@dataclass(frozen=True)
class Exponential(Link):
    """:math:`e^s`."""

    name = "exponential"

    def mean(self, scores: Tensor) -> Tensor:
        return scores.exp()


@dataclass(frozen=True)
class OrderedMean(Link):
    r""":math:`v_1 + \sum_k (v_{k+1} - v_k)\, \Phi(s - t_k)`.

    Parameters
    ----------
    levels : tuple of float
        :math:`v_1 < \dots < v_L`.
    thresholds : tuple of float
        :math:`t_1 \le \dots \le t_{L-1}`.

    Examples
    --------
    >>> OrderedMean((1.0, 2.0, 3.0), (-1.0, 1.0)).mean(torch.tensor([0.0, 9.0]))
    tensor([2., 3.])
    """

    name = "ordered_probit"
    levels: tuple[float, ...]
    thresholds: tuple[float, ...]

    def mean(self, scores: Tensor) -> Tensor:
        levels = self.levels
        mean = torch.full_like(scores, levels[0])
        for low, high, t in zip(levels, levels[1:], self.thresholds, strict=False):
            mean = mean + (high - low) * torch.special.ndtr(scores - t)
        return mean.clamp(levels[0], levels[-1])

    @property
    def numbers(self) -> tuple[float, ...]:
        return (*self.levels, *self.thresholds)

    @classmethod
    def of(cls, numbers: tuple[float, ...]) -> Self:
        count = (len(numbers) + 1) // 2
        if count < 2 or len(numbers) % 2 == 0:
            raise TypeError("one threshold less than levels, of which there are two at least")
        return cls(numbers[:count], numbers[count:])


IDENTITY = Identity()
_LINKS: dict[str, type[Link]] = {
    kind.name: kind for kind in (Identity, Clip, LogisticMean, Exponential, OrderedMean)
}


def link_of(name: str, numbers: tuple[float, ...] = ()) -> Link:
    """Return the link that a file holds.

    Raises
    ------
    ObservationError
        If the name is unknown, or has another count of numbers.

    Examples
    --------
    >>> link_of("clip", (1.0, 5.0))
    Clip(low=1.0, high=5.0)
    """
    try:
        return _LINKS[name].of(tuple(numbers))
    except (KeyError, TypeError) as error:
        raise ObservationError(
            f"a link is one of {', '.join(map(repr, _LINKS))} with its numbers; got "
            f"{name!r} with {len(numbers)} numbers"
        ) from error
