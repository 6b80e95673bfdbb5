"""Objects that are no parameterizations, held by one: the same search finds their faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.search.verdict import expect

T = TypeVar("T")


class Held(Parameterization, Generic[T]):
    """A module without parameters that holds an object: what a factory made.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    item : object
    """

    def __init__(self, shape: tuple[int, int], rank: int, item: T) -> None:
        super().__init__(shape, rank)
        self.item = item

    @property
    def feasible_set(self) -> FeasibleSet:
        """The object itself, if it is a set."""
        item: object = self.item
        return item if isinstance(item, FeasibleSet) else super().feasible_set

    def factors(self) -> LowRankOperator:
        """Return zero: the object is what matters."""
        m, n = self.shape
        return LowRankOperator(torch.zeros(m, 1), torch.zeros(1), torch.zeros(n, 1))


@dataclass(frozen=True)
class Holding(Generic[T]):
    """A factory of modules that hold what another factory makes.

    Parameters
    ----------
    make : object
        What the user passed.
    build : callable
        From shape, rank, dtype and device to the object.
    """

    make: object
    build: Callable[..., T]

    def __call__(
        self, shape: tuple[int, int], rank: int, *, dtype: torch.dtype, device: torch.device
    ) -> Held[T]:
        return Held(shape, rank, self.build(shape, rank, dtype=dtype, device=device))


def held(subject: Subject, kind: type[T]) -> T:
    """Return the object of a case, of the type it has to be."""
    module = subject.fresh()
    assert isinstance(module, Held), "subjects of these laws hold their object"
    item: object = module.item  # pyright: ignore[reportUnknownMemberType]
    expect(isinstance(item, kind), f"make returned {type(item).__name__}, not {kind.__name__}")
    assert isinstance(item, kind)
    return item
