"""What a solver takes, declared: errors, tables and the cases of checks are made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch

from lowrank_opt.completion.model.losses import OrderedProbit, Squared
from lowrank_opt.completion.model.problem import CompletionProblem
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.observations.parts import is_cut
from lowrank_opt.parameterizations.base import Parameterization

if TYPE_CHECKING:
    from lowrank_opt.completion.solvers.context import Run

AnyResult: TypeAlias = CompletionResult | BayesianResult
Kind: TypeAlias = Literal["parameterization", "spectral set", "set", "rank", "nothing"]
BiasName: TypeAlias = Literal["additive", "none"]

_WITHOUT_FLOAT64 = ("mps",)
_KINDS: dict[Kind, str] = {
    "parameterization": "a parameterization",
    "spectral set": "a bounded set of singular values, or a weighted one",
    "set": "a set",
    "rank": "a rank, any matrix of which it fits",
    "nothing": "no model at all",
}


@dataclass(frozen=True)
class Traits:
    """Which problems a solver takes, and what it can do on the way.

    Parameters
    ----------
    sets : tuple of str
        What the model of a problem may be: a "parameterization", which is trained; a "spectral
        set", bounded, or a weighted one; any "set", onto which is projected; a "rank", any matrix
        of which may come out (a parameterization without a norm bound counts as its rank);
        "nothing", where the solver chooses the rank.
    losses : {"squared", "squared, ordered_probit", "any"}
    biases : tuple of str
        Of "additive" and "none".
    penalty : {"no", "yes", "needed"}
        Of the free factors; "needed" is a positive one.
    bias_penalty : bool
        Whether the problem's own counts; else the solver finds it.
    weights : bool
    side : bool
        Side information.
    dtypes : tuple of torch.dtype
    devices : tuple of str
        Types of devices; "any" for all that compute in float64.
    validation : bool
        Whether entries are held out to stop early.
    start : bool
        Whether it goes on from a result.
    checkpoint : bool
    certificate : bool
        Whether its results know the convex problem they solve, where there is one.
    distributed : bool
        Over processes.
    cut : bool
        Over processes of which each has the numbers of its own rows alone.
    cut_columns : bool
        Over processes of which each has the numbers of its own rows and columns alone.

    Examples
    --------
    >>> traits = Traits(sets=("rank",), losses="squared")
    >>> observed = torch.zeros(2, 2)
    >>> from lowrank_opt.observations import Observations
    >>> problem = CompletionProblem(Observations.from_dense(observed), 1, loss="huber")
    >>> list(traits.misfits(problem))
    ["takes the squared loss; got loss='huber'"]
    """

    sets: tuple[Kind, ...] = ("rank",)
    losses: Literal["squared", "squared, ordered_probit", "any"] = "squared"
    biases: tuple[BiasName, ...] = ("additive", "none")
    penalty: Literal["no", "yes", "needed"] = "no"
    bias_penalty: bool = True
    weights: bool = True
    side: bool = False
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    devices: tuple[str, ...] = ("any",)
    validation: bool = True
    start: bool = False
    checkpoint: bool = False
    certificate: bool = False
    distributed: bool = False
    cut: bool = False
    cut_columns: bool = False

    def misfits(self, problem: CompletionProblem, run: Run | None = None) -> Iterator[str]:
        """Yield what of a problem, and of a run, the solver does not take, one phrase each."""
        if not kinds_of(problem) & set(self.sets):
            taken = " or ".join(_KINDS[kind] for kind in self.sets)
            yield f"takes {taken}; got {_named(problem)}"
        yield from self._loss_misfits(problem)
        bias: BiasName = "none" if problem.bias is None else "additive"
        if bias not in self.biases:
            yield f"fits {' or '.join(self.biases)} biases; got bias={problem.bias!r}"
        yield from self._penalty_misfits(problem)
        yield from self._entry_misfits(problem)
        begun = run is not None and run.start is not None
        if is_cut(problem.observations):
            yield from self._cut_misfits(problem, begun=begun)
        yield from self._run_misfits(run)

    def _loss_misfits(self, problem: CompletionProblem) -> Iterator[str]:
        loss, ordered = problem.entry_loss, "ordered_probit" in self.losses
        if self.losses == "any" or isinstance(loss, Squared):
            return
        if not (ordered and isinstance(loss, OrderedProbit)):
            ranged = problem.prediction_range
            what = f"loss={problem.loss!r}" if ranged is None else f"prediction_range={ranged}"
            yield f"takes the squared loss{' and ordered_probit' if ordered else ''}; got {what}"
            return
        observations = problem.observations
        if observations.weights is not None:
            yield "takes no weights of ordered levels; got some"
        if observations.part is not None:
            yield "takes all ordered levels in one process; got a part of them"
        if observations.device.type != "cpu":
            yield f"takes ordered levels on the cpu; got {observations.device}"

    def _penalty_misfits(self, problem: CompletionProblem) -> Iterator[str]:
        penalty, rate = problem.penalty, problem.bias_penalty
        if self.penalty == "no" and penalty > 0:
            yield f"takes no penalty of the problem; got penalty={penalty!r}"
        if self.penalty == "needed" and not penalty > 0:
            yield f"needs a positive penalty; got penalty={penalty!r}"
        if not self.bias_penalty and problem.bias is not None and rate != 1.0:
            yield f"finds the penalty of biases by itself; got bias_penalty={rate!r}"

    def _entry_misfits(self, problem: CompletionProblem) -> Iterator[str]:
        observations = problem.observations
        if observations.weights is not None and not self.weights:
            yield "takes no weights; got some"
        if not self.side and (problem.row_features or problem.col_features or problem.implicit):
            yield "takes no side information; got some"
        yield from self._device_misfits(observations.device)
        if observations.part is not None and not self.distributed:
            yield "takes all entries in one process; got a part of them"
        elif is_cut(observations) and not self.cut:
            yield "keeps the numbers of all rows in each process; got rows that are cut"
        elif is_cut(observations, 1) and not self.cut_columns:
            yield (
                "keeps the numbers of all columns in each process; got columns that are cut: pass "
                "entries through cut_rows alone"
            )
        if observations.dtype not in self.dtypes:
            yield f"computes in {' or '.join(map(str, self.dtypes))}; got {observations.dtype}"

    def _cut_misfits(self, problem: CompletionProblem, *, begun: bool) -> Iterator[str]:
        model = problem.model
        if begun:
            yield "takes no start where rows are cut; got one"
        if problem.col_features and is_cut(problem.observations, 1):
            yield "takes no features of columns where columns are cut; got some"
        if problem.row_features or problem.implicit:
            yield "takes neither features of rows nor implicit ones where rows are cut; got some"
        if isinstance(model, Parameterization) and "parameterization" in self.sets:
            if not model.alike_rows:
                yield (
                    "takes where rows are cut only parameterizations that turn with their rows "
                    f"(alike_rows); got {type(model).__name__}, whose rows need each other"
                )
            if is_cut(problem.observations, 1) and not model.alike_cols:
                yield (
                    "takes where columns are cut only parameterizations that turn with their "
                    f"columns (alike_cols); got {type(model).__name__}, whose columns need each "
                    "other"
                )
        elif problem.feasible_set is not None:
            yield "takes no set where rows are cut; got one"

    def computes_on(self, device_type: str) -> bool:
        """Return whether observations may be on devices of a type.

        Examples
        --------
        >>> traits = Traits()
        >>> traits.computes_on("cuda"), traits.computes_on("mps")
        (True, False)
        """
        if "any" in self.devices:
            return device_type not in _WITHOUT_FLOAT64 or device_type in self.devices
        return device_type in self.devices

    def _device_misfits(self, device: torch.device) -> Iterator[str]:
        if self.computes_on(device.type):
            return
        if "any" in self.devices:
            yield f"computes sums in float64, which {device.type} has not; got {device}"
        else:
            yield f"needs observations on the {' or '.join(self.devices)}; got {device}"

    def _run_misfits(self, run: Run | None) -> Iterator[str]:
        if run is None:
            return
        for name, able in (
            ("validation", self.validation),
            ("start", self.start),
            ("checkpoint", self.checkpoint),
        ):
            if getattr(run, name) is not None and not able:
                yield f"takes no {name}; got one"


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass of options, checked when it is made.

    Attributes
    ----------
    traits : Traits
        Which problems it takes.
    """

    traits: ClassVar[Traits]

    def solve(self, problem: CompletionProblem, run: Run) -> AnyResult:
        """Return the completion of a problem that fits the traits."""
        ...


def kinds_of(problem: CompletionProblem) -> set[Kind]:
    """Return what the model of a problem may be taken for."""
    model, feasible_set = problem.model, problem.feasible_set
    if model is None:
        return {"nothing"}
    kinds: set[Kind] = set()
    if isinstance(model, Parameterization):
        kinds.add("parameterization")
    if feasible_set is not None and feasible_set.of_singular_values:
        kinds.add("spectral set")
    kinds.add("rank" if feasible_set is None else "set")
    return kinds


def _named(problem: CompletionProblem) -> str:
    model = problem.model
    if model is None:
        return "none"
    if isinstance(model, int):
        return f"the rank {model}"
    if isinstance(model, Parameterization):
        return f"{model}, which stays in {model.feasible_set}"
    return repr(model)
