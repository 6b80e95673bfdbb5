"""A feasible set on trial: given, made by a function, or declared by a parameterization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch

from lowrank_opt.errors import RankError, ShapeError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.calls import call
from lowrank_opt.testing.cases.case import Case, Factory, RefusedCase, Subject, Trial, seeded
from lowrank_opt.testing.cases.charts import Chart, chart_of

_ORDERS = {1: ("rank",), 2: ("shape", "rank")}


@dataclass(frozen=True)
class SetTrial(Trial[object]):
    """A feasible set at one case.

    Parameters
    ----------
    build : callable
        From this trial to the set.
    """

    build: Callable[[SetTrial], object]

    @cached_property
    def feasible_set(self) -> FeasibleSet:
        """The set: one for a trial, as a function may draw it at random."""
        with seeded(self.seed, self.device):
            found = self.build(self)
        if not isinstance(found, FeasibleSet):
            raise TypeError(f"make must return a FeasibleSet; got {type(found).__name__}")
        return found

    @cached_property
    def chart(self) -> Chart:
        """The oracle's view of the set."""
        return chart_of(self.feasible_set)

    def member(self) -> LowRankOperator:
        """Return the case's member of the set."""
        return self.case.target.build(
            self.feasible_set, self.case.shape, dtype=self.dtype, device=self.device
        )

    def sample(self, index: int = 0) -> LowRankOperator:
        """Return a sample of the set, another one for each index."""
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        return self.feasible_set.sample(self.case.shape, generator=generator, dtype=self.dtype)

    def full(self, size: float, salt: int = 41) -> LowRankOperator:
        """Return an operator of full rank and of a size."""
        (m, n), k = self.case.shape, min(self.case.shape)
        scale = torch.full((k,), size, dtype=self.dtype, device=self.device)
        return LowRankOperator(
            self.normal(m, k, salt=salt), scale, self.normal(n, k, salt=salt + 1)
        )

    def scaled(self, op: LowRankOperator, factor: float) -> LowRankOperator:
        """Return a member with its distance from the set's centre multiplied."""
        chart = self.chart
        if chart.shift == 0:
            return factor * op
        W = chart.push(factor * chart.pull(_dense(op)))
        return LowRankOperator.from_dense(torch.from_numpy(W).to(op.left))


def _dense(op: LowRankOperator) -> np.ndarray:
    return op.to(dtype=torch.float64).to_dense().detach().cpu().numpy()


def set_trial(make: object, case: Case, dtype: torch.dtype, device: torch.device) -> SetTrial:
    """Return the trial of a set, or of what a function of the rank, or of both, returns."""
    return SetTrial(make, case, dtype, device, _made)


def declared_set(make: Factory, case: Case, dtype: torch.dtype, device: torch.device) -> SetTrial:
    """Return the trial of the set that a parameterization declares."""
    return SetTrial(make, case, dtype, device, _declared)


def _made(trial: SetTrial) -> object:
    make = trial.make
    if isinstance(make, FeasibleSet):
        return make
    assert callable(make), "a set, or a function that returns one"
    options = {"dtype": trial.dtype, "device": trial.device}
    known = {"shape": trial.case.shape, "rank": trial.case.rank, **options}
    try:
        return call(make, _ORDERS, known)
    except (ShapeError, RankError) as error:
        raise RefusedCase(str(error)) from error


def _declared(trial: SetTrial) -> object:
    assert callable(trial.make), "a factory of parameterizations"
    return (
        Subject(cast("Factory", trial.make), trial.case, trial.dtype, trial.device)
        .fresh()
        .feasible_set
    )
