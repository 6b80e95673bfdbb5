"""Modules of other packages on trial: the weight that they compute, as a map with a set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowrank_opt.errors import LowRankError, ShapeError, TargetError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.base import Parameterization
from lowrank_opt.sets import FeasibleSet, RankAtMost
from lowrank_opt.testing.cases.calls import call, taken
from lowrank_opt.testing.cases.case import Case, Subject

Weight: TypeAlias = str | Callable[[nn.Module], Tensor]
_ORDERS: Mapping[int, tuple[str, ...]] = {1: ("shape",), 2: ("shape", "rank")}
_SET_ORDERS: Mapping[int, tuple[str, ...]] = {1: ("rank",), 2: ("shape", "rank")}


class Foreign(Parameterization):
    """The weight of a module as a dense matrix between nothing: no guarantee is added.

    Parameters
    ----------
    shape : tuple of int
    rank : int
    module : Module
    weight : str or callable
    feasible_set : FeasibleSet
    rtol : float, optional
        What counts as rounding, relative to the set's size; by default the root of eps.
    """

    # Torch refuses to pickle modules with its parametrizations.
    pickles = False

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        module: nn.Module,
        weight: Weight,
        feasible_set: FeasibleSet,
        rtol: float | None = None,
    ) -> None:
        super().__init__(shape, rank)
        self.module: nn.Module
        self.weight: Weight
        self.module, self.weight = module, weight
        self.declared: FeasibleSet
        self.rtol: float | None
        self.declared, self.rtol = feasible_set, rtol

    @property
    def feasible_set(self) -> FeasibleSet:
        """The set that was named."""
        return self.declared

    def factors(self) -> LowRankOperator:
        """Return ``W diag(1) I``, or ``I diag(1) W`` if W is wide."""
        W = weight_of(self.module, self.weight)
        unit = torch.eye(min(W.shape), dtype=W.dtype, device=W.device)
        left, right = (W, unit) if W.shape[0] >= W.shape[1] else (unit, W.mT)
        return LowRankOperator(left, W.new_ones(len(unit)), right)


def weight_of(module: nn.Module, weight: Weight) -> Tensor:
    """Return the weight of a module as a matrix: rows by all other axes."""
    named = isinstance(weight, str)
    W: object = reduce(getattr, weight.split("."), module) if named else weight(module)
    if not isinstance(W, Tensor) or W.ndim < 2:
        raise TargetError(
            f"the weight must be a tensor of two or more axes; {weight!r} of "
            f"{type(module).__name__} is {_kind(W)}"
        )
    return W.flatten(1)


def _kind(W: object) -> str:
    return f"of shape {tuple(W.shape)}" if isinstance(W, Tensor) else f"a {type(W).__name__}"


@contextmanager
def _default_dtype(dtype: object) -> Generator[None]:
    """Make modules in a dtype: frames that are converted later keep the digits of the first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if isinstance(dtype, torch.dtype) else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class ForeignTrial:
    """A factory of modules of another package, as a factory of parameterizations.

    Parameters
    ----------
    written : Module or callable
        What the user passed.
    weight : str or callable
    feasible_set : FeasibleSet or callable, optional
    rtol : float, optional
    options : mapping
        Those of `check_module` that differ from its defaults, for programs.
    """

    written: nn.Module | Callable[..., nn.Module]
    weight: Weight = "weight"
    feasible_set: FeasibleSet | Callable[..., FeasibleSet] | None = None
    rtol: float | None = None
    options: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def least_rtol(self) -> float:
        """The excess that a module explains which was made before, in a dtype of its own."""
        if not isinstance(self.written, nn.Module):
            return 0.0
        return torch.finfo(weight_of(self.written, self.weight).dtype).eps ** 0.5

    @property
    def fixed(self) -> bool:
        """Whether the shape is the module's own."""
        if isinstance(self.written, nn.Module):
            return True
        try:
            call(self.written, _ORDERS, {})
        except Exception:
            return False
        return True

    def __call__(
        self, shape: tuple[int, int], rank: int, *, dtype: torch.dtype, device: torch.device
    ) -> Foreign:
        given = {"shape": shape, "rank": rank, "dtype": dtype, "device": device}
        module = self.made(given).to(dtype=dtype, device=device)
        return Foreign(
            shape, rank, module, self.weight, self._declared(shape, rank, given), self.rtol
        )

    def made(self, given: Mapping[str, object] | None = None) -> nn.Module:
        """Return a module; ValueErrors of other packages are refusals of a shape."""
        if isinstance(self.written, nn.Module):
            return copy.deepcopy(self.written)
        given = given or {}
        try:
            with _default_dtype(given.get("dtype")):
                made: object = call(self.written, _ORDERS, given)
        except LowRankError:
            raise
        except ValueError as error:
            # So other packages refuse a shape.
            raise ShapeError(f"the module cannot be made: {error}") from error
        if not isinstance(made, nn.Module):
            raise TargetError(f"make must return an nn.Module; got {type(made).__name__}")
        return made

    def _declared(
        self, shape: tuple[int, int], rank: int, given: Mapping[str, object]
    ) -> FeasibleSet:
        named = self.feasible_set
        if named is None:
            made = self.written
            asked = () if isinstance(made, nn.Module) else taken(made, _ORDERS, given)
            # Who is not told a rank claims none.
            return RankAtMost(rank if "rank" in asked else min(shape))
        return named if isinstance(named, FeasibleSet) else call(named, _SET_ORDERS, given)

    def own_shape(self) -> tuple[int, int]:
        """Return the shape of the weight of a module that has its own."""
        m, n = weight_of(self.made(), self.weight).shape
        return m, n


def foreign_subject(
    make: ForeignTrial, case: Case, dtype: torch.dtype, device: torch.device
) -> Subject:
    """Return a trial; of a module with a shape of its own, at that shape."""
    if make.fixed:
        shape = make.own_shape()
        case = replace(case, shape=shape, rank=min(shape))
    return Subject(make, case, dtype, device)
