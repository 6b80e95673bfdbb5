"""Radii relative to the base weight, and options by pattern."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lowrank_opt.errors import LowRankError, OptionError, RadiusError, ShapeError
from lowrank_opt.linalg import lp_norm
from lowrank_opt.nn.adapters.slots import (
    WeightSlot,
)
from lowrank_opt.nn.basis.cut import in_one_piece
from lowrank_opt.nn.surgery.targets import Candidate, describe, matches
from lowrank_opt.parameterizations import Parameterization

_T = TypeVar("_T")
Make = Callable[..., Parameterization]


@dataclass(frozen=True)
class RelativeRadius:
    r"""A radius of ``fraction`` times the Schatten-p norm of the base weight.

    Parameters
    ----------
    fraction : float
        Positive.
    p : float
        In [1, inf]: 2 is the Frobenius norm.

    Raises
    ------
    RadiusError
        If `fraction` is not positive and finite, or p < 1.

    Examples
    --------
    >>> RelativeRadius(0.1, p=2).of(torch.eye(4))
    0.2
    """

    fraction: float
    p: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fraction) and self.fraction > 0 and self.p >= 1):
            raise RadiusError(
                f"a relative radius needs a positive fraction and p >= 1; got {self.fraction!r} "
                f"and p={self.p!r}"
            )

    def of(self, weight: Tensor) -> float:
        """Return the radius for one matrix."""
        W = weight.detach().double()
        values = W.flatten() if self.p == 2 else torch.linalg.svdvals(W)
        return self.fraction * float(lp_norm(values, self.p))


Radius = float | RelativeRadius


@dataclass(frozen=True)
class Options:
    """What `make` is called with besides the shape, by the names of sites."""

    radius: Radius | None
    rank_pattern: Mapping[str, int]
    radius_pattern: Mapping[str, Radius]
    generator: torch.Generator | None = None

    def check(self, make: Make, options: list[Candidate]) -> None:
        """Raise OptionError if a pattern matches nothing or `make` takes no such option."""
        for pattern in (*self.rank_pattern, *self.radius_pattern):
            if not any(_applies(pattern, s.name) for c in options for s in c.slots):
                raise OptionError(
                    f"a rank or radius pattern must match something; got {pattern!r}: "
                    f"{describe(options, pattern)}"
                )
        given: dict[str, object] = {"rank": 1} if self.rank_pattern else {}
        given |= {"radius": 1.0} if self.radius_pattern or self.radius is not None else {}
        try:
            asked = dict.fromkeys(asked_of(make))
            inspect.signature(make).bind((1, 1), **{**asked, **given})
        except TypeError as error:
            raise OptionError(
                f"make must take a shape and {sorted(given)}; {error}: "
                "pass for example functools.partial(NBLoRA, rank=8, radius=0.5)"
            ) from error

    def _reads_weights(self, make: Make) -> bool:
        """Whether the numbers of weights are looked at."""
        radii = (self.radius, *self.radius_pattern.values())
        return "weight" in asked_of(make) or any(isinstance(x, RelativeRadius) for x in radii)

    def build(self, make: Make, slot: WeightSlot) -> list[Parameterization]:
        """Return new parameterizations, one for each matrix of the weight.

        Raises
        ------
        LowRankError
            What `make` raises, with the name of the weight before the message.
        """
        shapes = slot.shapes
        weight = slot.parameter.detach()
        if self._reads_weights(make):
            weight = in_one_piece(weight)
        matrices = weight.reshape(len(shapes), *shapes[0])
        rank = _first(self.rank_pattern, slot.name)
        own = _first(self.radius_pattern, slot.name)
        radius = self.radius if own is None else own
        made: list[Parameterization] = []
        for shape, matrix in zip(shapes, matrices, strict=True):
            given: dict[str, object] = {} if rank is None else {"rank": rank}
            if radius is not None:
                relative = isinstance(radius, RelativeRadius)
                given["radius"] = radius.of(matrix) if relative else float(radius)
            asked = {"weight": matrix, "name": slot.name, "generator": self.generator}
            given |= {key: asked[key] for key in asked_of(make) if key not in given}
            try:
                made.append(_checked(make(shape, **given), shape))
            except LowRankError as error:
                error.args = (f"{slot.name}: {error}", *error.args[1:])
                raise
        return made


def asked_of(make: Make) -> list[str]:
    """Return which of the further arguments `make` has names for, besides the shape."""
    try:
        _, *others = inspect.signature(make).parameters.values()
    except ValueError:
        return []
    named = {p.name for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    bound = getattr(make, "keywords", {})
    return [key for key in ("weight", "name", "generator") if key in named and key not in bound]


def takes(make: Make, name: str) -> bool:
    """Whether `make` can be called with an argument of that name besides the shape."""
    try:
        inspect.signature(make).bind((1, 1), **{**dict.fromkeys(asked_of(make)), name: 1})
    except (TypeError, ValueError):
        return False
    return True


def _checked(made: object, shape: tuple[int, int]) -> Parameterization:
    if not isinstance(made, Parameterization):
        raise OptionError(f"make(shape) must return a Parameterization; got {type(made).__name__}")
    if made.shape != shape:
        raise ShapeError(f"make{shape} must have shape {shape}; got {made.shape}")
    return made


def _applies(pattern: str, site: str) -> bool:
    """Whether a pattern names the site, or the layer that holds it."""
    return matches(pattern, site) or matches(pattern, site.rpartition(".")[0])


def _first(patterns: Mapping[str, _T], site: str) -> _T | None:
    return next((v for pattern, v in patterns.items() if _applies(pattern, site)), None)
