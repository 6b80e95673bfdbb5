"""Every parameterization of this package as a target, with the laws it is known not to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import cast

import torch

from lowrank_opt.errors import OptionError, ShapeError, TargetError
from lowrank_opt.parameterizations import Contractions, NBLoRA, Parameterization
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.testing.search.expressions import Expression
from lowrank_opt.testing.subjects.targets import Target

Shape = tuple[int, int]
_Make = Callable[..., Parameterization]

_WEIGHT = {"never_dense": "the map reads the base weight, which is m x n"}
_FRAMES = {"smoothness": "the polar factor of dependent columns jumps: no frame is the nearest"}
_HALF_TURNS = {
    "section": "near half-turns the inverse of the Cayley transform loses digits, as many as the "
    "parameters have before the point"
}
_FROZEN = {
    "zero_start": "a product less its frozen copy is zero to rounding; in 1 x 1 it is a sign, "
    "without a slope"
}
_CLAMPED = {
    "zero_start": "norms clamped at 1e-4, as published: the first step of any size moves W by "
    "its radius"
}
_ONE_BLOCK = {"never_dense": "a single block turns all columns: it has their number squared"}
_KNOWN: Mapping[str, Mapping[str, str]] = {
    "ETHER(weight, blocks=r)": _WEIGHT,
    "ETHERPlus(weight, blocks=r)": _WEIGHT,
    "ETHERPlus(weight, one side)": _WEIGHT,
    "ScaledRotation(weight, rank)": _WEIGHT,
    "hra(weight, 2 r)": _WEIGHT,
    "Orthogonal(weight, rank)": _WEIGHT,
    "oft(weight, blocks)": _HALF_TURNS | _ONE_BLOCK,
    "psoft(weight, 2 r)": _WEIGHT | _HALF_TURNS,
    "oft(weight, blocks, radius)": _WEIGHT
    | {"smoothness": "at parameters of 100 it is saturated: differences are mostly rounding"},
    "SVDFrames": _FRAMES,
    "SVDFrames(radius)": _FRAMES,
    "stella": _FRAMES,
    "polar(radius)": _FRAMES,
    "DeLoRA(radius, 'paper')": _FROZEN,
    "DeLoRA(radius, 'author')": _FROZEN,
    "DeLoRA(radius, 'peft')": _CLAMPED,
}


@dataclass(frozen=True)
class FromCatalog:
    """The factory of a method of the catalog; called with a shape, a rank and a dtype.

    Parameters
    ----------
    name : str
        As in the table of methods.
    """

    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self, shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64
    ) -> Parameterization:
        try:
            made = _example(self.name).make(shape, rank, dtype=dtype)
        except (OptionError, TargetError) as error:
            raise ShapeError(f"the example of {self.name} does not fit {shape}: {error}") from None
        assert isinstance(made, Parameterization), "sums with a weight are left out"
        return made

    def source_code(self) -> Expression:
        """Return an expression for the factory."""
        line = "from lowrank_opt.testing.subjects.library import FromCatalog"
        return Expression(f"FromCatalog({self.name!r})", (line,))


@lru_cache(maxsize=256)  # Asked at each construction, and slower than most of them.
def _example(name: str) -> Example:
    return next(method for method in examples() if method.name == name)


def library(*, unlisted: bool = False) -> list[Target]:
    """Return a target for each line of the table of methods that is a parameterization.

    Parameters
    ----------
    unlisted : bool
        Also the forms that have no line in the table.

    Examples
    --------
    >>> "Factored" in [target.name for target in library()]
    True
    >>> len(library(unlisted=True)) > len(library())
    True
    """
    methods = [m for m in examples() if not m.name.startswith("WeightDecomposed")]
    return [
        Target(m.name, _factory(m), _KNOWN.get(m.name, {}), m.listed)
        for m in methods
        if m.listed or unlisted
    ]


def library_target(name: str) -> Target:
    """Return the target of a name in the table of methods.

    Raises
    ------
    TargetError
        If there is none.
    """
    for target in library():
        if target.name == name:
            return target
    raise TargetError(
        f"the table of methods has no {name!r}; see lowrank_opt.testing.subjects.library()"
    )


def nb_lora_in_a_box(shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64) -> NBLoRA:
    """Return `NBLoRA` with a bound on each singular value, as many as the rank."""
    return NBLoRA(shape, rank, bounds=[3 / (1 + i) for i in range(rank)], dtype=dtype)


def contractions_in_a_box(
    shape: Shape, rank: int, *, dtype: torch.dtype = torch.float64
) -> Contractions:
    """Return `Contractions` with a bound of either sign on each singular value."""
    bounds = [(-1) ** i * 3 / (1 + i) for i in range(rank)]
    return Contractions(shape, rank, bounds=bounds, dtype=dtype)


# The table's examples have three bounds: they fit one rank only.
_ANY_RANK: Mapping[str, _Make] = {
    "NBLoRA(bounds)": nb_lora_in_a_box,
    "Contractions(bounds)": contractions_in_a_box,
}


def _factory(method: Example) -> _Make:
    if method.name in _ANY_RANK:
        return _ANY_RANK[method.name]
    # A class, or a partial of one, is importable code; other examples are found by their name.
    kind = method.make.func if isinstance(method.make, partial) else method.make
    return cast("_Make", method.make) if isinstance(kind, type) else FromCatalog(method.name)
