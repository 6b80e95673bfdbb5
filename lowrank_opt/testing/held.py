"""Objects that are no parameterizations, held by one: the same search finds their faults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.case import Subject
from lowrank_opt.testing.counterexample import _maker  # pyright: ignore[reportPrivateUsage]
from lowrank_opt.testing.verdict import expect

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


def call(
    make: Callable[..., T], orders: Mapping[int, tuple[str, ...]], available: Mapping[str, object]
) -> T:
    """Call a factory with those of the available arguments that it takes.

    By name where it has a parameter of that name; else in the order that belongs to the number of
    positional parameters that are left.
    """
    parameters = inspect.signature(make).parameters.values()
    named = {p.name: available[p.name] for p in parameters if p.name in available}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = [
        p
        for p in parameters
        if p.kind in positional and p.default is inspect.Parameter.empty and p.name not in named
    ]
    words = orders.get(len(missing), ())
    return make(*(available[name] for name in words), **named)


def program_of(entry: str) -> Callable[[Subject, str, str], str]:
    """Return a writer of counter-examples that call an entry point on one case.

    Parameters
    ----------
    entry : str
        Name of a function of `lowrank_opt.testing`.
    """

    def program(subject: Subject, law: str, found: str) -> str:
        wrapped = getattr(subject.make, "written", getattr(subject.make, "make", subject.make))
        maker = _maker(wrapped)
        lines = [
            f"# found: {' '.join(found.split())}",
            "import torch",
            f"from lowrank_opt.testing import Case, FreeParameters, Member, {entry}",
            *maker.imports,
            "",
            f"make = {maker.code}",
            f"case = {subject.case!r}",
            f"{entry}(make, only=[{law!r}], case=case, dtype={subject.dtype})",
        ]
        return "\n".join(lines)

    return program
