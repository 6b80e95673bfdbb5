"""What a solver declares it can do: one law for each of its traits, skipped where it declares none.

Made from the fields of `Traits`: a trait without a law here does not import.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from tempfile import TemporaryDirectory
from typing import Unpack

import numpy as np
import torch

from lowrank_opt.completion import Checkpoint, CompletionResult, Iteration
from lowrank_opt.completion.complete import RunOptions
from lowrank_opt.completion.model.losses import Loss
from lowrank_opt.completion.solvers.traits import Kind, Traits
from lowrank_opt.observations import Observations
from lowrank_opt.parameterizations import Factored
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.charts import chart_of
from lowrank_opt.testing.cases.oracle import Array, dense, singular_values, to_array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.planted import (
    Planted,
    SolverCase,
    difference,
    planted,
    predictions,
    seeded_start,
)
from lowrank_opt.testing.cases.solver_objects import (
    Changes,
    default_kind,
    problem_by_traits,
    set_of_kind,
    solved_by,
)
from lowrank_opt.testing.laws.solvers.results import (
    declaring,
    near,
    solved_once,
    where_it_computes,
)
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# A loss that is asked for must be smaller by this factor than where another one is minimised.
_BETTER = 0.97
_LARGE = 1e9
_SMALL = 0.3
# Iterations after which a run is broken off.
_BROKEN_OFF = 2


def _solve(
    trial: SolverCase,
    solver: Solver,
    problem: Planted,
    *,
    kind: Kind | None = None,
    run: RunOptions | None = None,
    **changes: Unpack[Changes],
) -> CompletionResult:
    with seeded_start(trial.seed) as generator:
        asked = problem_by_traits(solver, problem.observations, problem.rank, kind=kind, **changes)
        return solved_by(solver, asked, **{"generator": generator, **(run or {})})


def _sets(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial)
    for kind in solver.traits.sets:
        usual = kind == default_kind(solver)
        result = solved_once(trial) if usual else _solve(trial, solver, problem, kind=kind)
        near(trial, problem, predictions(result), problem.truth, f"with a {kind} as the model")
        allowed_set = set_of_kind(kind, problem.observations.shape, problem.rank)
        chart, W = chart_of(allowed_set), dense(result.operator)
        excess = chart.excess(W)
        expect(excess <= 1e-5 * chart.size(W), f"a {kind} is left by {excess:.2e}")


def _losses(trial: SolverCase, solver: Solver) -> None:
    if solver.traits.losses != "any":
        raise NotApplicable("the solver takes the squared loss, as all other laws do")
    problem = planted(trial)
    obs = problem.observations
    wrong = torch.from_numpy(trial.rng.random(len(obs)) < 0.1)
    values = torch.where(wrong.to(obs.device), obs.values + 5 * problem.size, obs.values)
    soiled = replace(problem, observations=Observations(obs.rows, obs.cols, values, obs.shape))
    squared = _residuals(_solve(trial, solver, soiled), soiled)
    losses: tuple[tuple[Loss, Callable[[Array], Array]], ...] = (
        ("absolute", np.abs),
        ("huber", _huber),
    )
    for loss, size in losses:
        own = _residuals(_solve(trial, solver, soiled, loss=loss), soiled)
        found, other = float(size(own).sum()), float(size(squared).sum())
        expect(
            found <= _BETTER * other,
            f"with loss={loss!r} that loss is {found:.4g}; least squares come to {other:.4g}",
        )


def _huber(e: Array) -> Array:
    return np.where(np.abs(e) <= 1, e * e / 2, np.abs(e) - 0.5)


def _biases(trial: SolverCase, solver: Solver) -> None:
    problem = _shifted(trial)
    if "additive" in solver.traits.biases:
        rate = 1e-6 if solver.traits.bias_penalty else 1.0
        result = _solve(trial, solver, problem, bias="additive", bias_penalty=rate)
        near(trial, problem, predictions(result), problem.truth, "with shifted rows and columns")
    if "none" in solver.traits.biases:
        bias = _solve(trial, solver, problem, bias=None).bias
        size = abs(float(bias.mean)) + _largest(bias.rows) + _largest(bias.cols)
        expect(size == 0, f"without biases, some of size {size:.2e} are fitted")


def _shifted(trial: SolverCase) -> Planted:
    """Return a small planted matrix beside a constant for each row and column, and for all.

    Small, for solvers that fit the biases first: the matrix moves them.
    """
    problem = planted(trial)
    obs, (m, n) = problem.observations, problem.observations.shape
    shift = trial.rng.standard_normal((m, 1)) + trial.rng.standard_normal((1, n)) + 3.0
    added = torch.from_numpy(shift).to(obs.values)[obs.rows, obs.cols]
    moved = Observations(obs.rows, obs.cols, _SMALL * obs.values + added, obs.shape)
    return replace(problem, truth=_SMALL * problem.truth + shift, observations=moved)


def _penalty(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial)
    small, large = (
        float(singular_values(dense(_penalised(trial, solver, problem, rate).operator)).sum())
        for rate in (1e-3, 100.0 * len(problem.observations))
    )
    expect(
        large <= 0.1 * small,
        f"a penalty that outweighs the entries leaves a nuclear norm of {large:.3g} of {small:.3g}",
    )


def _penalised(
    trial: SolverCase, solver: Solver, problem: Planted, rate: float
) -> CompletionResult:
    if default_kind(solver) != "parameterization":
        return _solve(trial, solver, problem, penalty=rate)
    # A ball may be a map that forgets the size of its parameters.
    with seeded_start(trial.seed):
        free = Factored(problem.observations.shape, problem.rank, dtype=trial.dtype)
    return _solve(trial, solver, problem, penalty=rate, model=free.to(device=trial.device))


def _bias_penalty(trial: SolverCase, solver: Solver) -> None:
    if "additive" not in solver.traits.biases:
        raise NotApplicable("the solver fits no biases")
    problem = _shifted(trial)
    bias = _solve(trial, solver, problem, bias="additive", bias_penalty=_LARGE).bias
    size = max(_largest(bias.rows), _largest(bias.cols))
    expect(size <= 1e-3, f"with bias_penalty={_LARGE:g}, biases of {size:.2e} are fitted")


def _side(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial)
    obs, truth = problem.observations, problem.truth
    left, _, _ = np.linalg.svd(truth)
    features = left[:, : problem.rank] * truth.shape[0] ** 0.5
    last = int(np.argmax((truth**2).sum(axis=1)))
    kept = problem.restricted(torch.nonzero(obs.rows != last).squeeze(1))
    found = predictions(_solve(trial, solver, kept, row_features=(features,)))[last]
    error = difference(found, truth[last], float(np.sqrt(np.mean(truth[last] ** 2))))
    expect(error <= 0.5, f"a row of which only features are known is off by {error:.2e}")


def _dtypes(trial: SolverCase, solver: Solver) -> None:
    for dtype in solver.traits.dtypes:
        inside = replace(trial, dtype=dtype)
        problem, result = planted(inside), solved_once(inside)
        found = result.operator.dtype
        expect(found == dtype, f"entries in {dtype} give a result in {found}")
        near(trial, problem, predictions(result), problem.truth, f"in {dtype}")


def _devices(trial: SolverCase, solver: Solver) -> None:
    for name in filter(_is_there, _named_devices(solver)):
        there = replace(trial, device=torch.device(name))
        problem, result = planted(there), solved_once(there)
        found = result.operator.device.type
        expect(found == name, f"entries on the {name} give a result on the {found}")
        near(trial, problem, predictions(result), problem.truth, f"on the {name}")


def _named_devices(solver: Solver) -> tuple[str, ...]:
    devices = solver.traits.devices
    return tuple(filter(solver.traits.computes_on, _USUAL)) if "any" in devices else devices


def _is_there(device: str) -> bool:
    return device == "cpu" or bool(getattr(getattr(torch, device, None), "is_available", bool)())


def _validation(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial, noise=0.1)
    obs = problem.observations
    order = torch.from_numpy(trial.rng.permutation(len(obs))).to(obs.device)
    fitted, held = (problem.restricted(k) for k in (order[8:], order[:8]))
    result = _solve(trial, solver, fitted, run={"validation": held.observations})
    rmse = float(np.sqrt(np.mean(_residuals(result, held) ** 2)))
    best = float(np.nanmin([np.nan, *result.history.validation_rmse]))
    expect(
        abs(rmse - best) <= 1e-3 * (problem.size + rmse),
        f"the best error on held-out entries is {best:.4g}; that of the result is {rmse:.4g}",
    )


def _start(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial)
    first = solved_once(trial)
    again = _solve(trial, solver, problem, run={"start": first})
    steps, more = len(first.history), len(again.history)
    near(trial, problem, predictions(again), problem.truth, "after going on from a result")
    fewer = more < steps or steps <= 3 or not first.status.succeeded
    expect(fewer, f"{steps} iterations lead there, {more} lead on from there")


_USUAL = ("cpu", "cuda", "xpu")


class _BrokenOff(Exception):  # noqa: N818 (no error: what a killed process is played by)
    pass


def _checkpoint(trial: SolverCase, solver: Solver) -> None:
    problem, seen = planted(trial), list[Iteration]()

    def break_off(iteration: Iteration) -> None:
        seen.append(iteration)
        if len(seen) > _BROKEN_OFF:
            raise _BrokenOff

    whole = solved_once(trial)
    with TemporaryDirectory() as folder:
        run: RunOptions = {"checkpoint": Checkpoint(folder, every=1)}
        with suppress(_BrokenOff):
            _solve(trial, solver, problem, run={**run, "callbacks": (break_off,)})
        if len(seen) <= _BROKEN_OFF:
            raise NotApplicable("the solver ends before it can be broken off")
        run = {"checkpoint": Checkpoint(folder, every=1, resume=True)}
        rest = list[Iteration]()
        resumed = _solve(trial, solver, problem, run={**run, "callbacks": (rest.append,)})
    error = difference(predictions(resumed), predictions(whole), problem.size)
    expect(error <= 1e3 * trial.eps, f"a run that was broken off ends {error:.2e} from a whole one")
    # A solver may fit more than once, of which the history has the last fit alone.
    fewer = len(rest) < len(whole.history)
    expect(fewer or _objectives(rest) != _objectives(seen), "a run that was broken off begins anew")


def _objectives(iterations: list[Iteration]) -> list[float]:
    return [x.objective for x in iterations[:_BROKEN_OFF]]


def _distributed(trial: SolverCase, solver: Solver) -> None:
    problem = planted(trial)
    alone = predictions(solved_once(trial))
    with _group_of_one():
        grouped = predictions(_solve(trial, solver, problem))
    error = difference(grouped, alone, problem.size)
    expect(error <= 1e-4, f"in a group of one process the result is {error:.2e} from that alone")


def _cut(trial: SolverCase, solver: Solver, side: str = "rows") -> None:
    problem = planted(trial)
    with _group_of_one():
        from lowrank_opt.distributed import cut_columns, cut_rows, split_rows

        part = split_rows(problem.observations)
        if is_dataclass(solver) and "gap" in {f.name for f in fields(solver)}:
            # Where rows are cut no proof is gone on from.
            solver = replace(solver, gap=None)
        whole = predictions(_solve(trial, solver, replace(problem, observations=part)))
        cut = cut_rows if side == "rows" else cut_columns
        apart = replace(problem, observations=cut(part))
        error = difference(predictions(_solve(trial, solver, apart)), whole, problem.size)
    expect(
        error <= 1e-4, f"with {side} that are cut the result is {error:.2e} from that of whole ones"
    )


def _cut_columns(trial: SolverCase, solver: Solver) -> None:
    _cut(trial, solver, "columns")


@contextmanager
def _group_of_one() -> Generator[None]:
    if not torch.distributed.is_available() or torch.distributed.is_initialized():
        raise NotApplicable("no process group can be made here")
    with TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def _residuals(result: CompletionResult, problem: Planted) -> Array:
    obs = problem.observations
    found = predictions(result)[obs.rows.cpu().numpy(), obs.cols.cpu().numpy()]
    return found - to_array(obs.values)


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max())


# Of a trait: what it says, and the check; None where a law of results or of optimality is it.
_BODIES: dict[str, tuple[str, Callable[[SolverCase, Solver], None]] | None] = {
    "sets": ("The matrix is found with every kind of model, inside its set.", _sets),
    "losses": ("The loss that is asked for is the one that is minimised.", _losses),
    "biases": ("Biases are found where they are asked for, and are zero elsewhere.", _biases),
    "penalty": ("A penalty that outweighs the entries leaves next to nothing.", _penalty),
    "bias_penalty": ("A large penalty of biases leaves none.", _bias_penalty),
    "weights": None,
    "side": ("A row of which only features are known is predicted by them.", _side),
    "dtypes": ("The matrix is found in every dtype, in that dtype.", _dtypes),
    "devices": ("The matrix is found on every device, on that device.", _devices),
    "validation": ("The result is the best iterate on held-out entries.", _validation),
    "start": ("Going on from a result takes fewer iterations.", _start),
    "checkpoint": ("A run that was broken off ends as one that was not.", _checkpoint),
    "certificate": None,
    "distributed": ("A group of one process finds what a process finds alone.", _distributed),
    "cut": ("Rows that are cut are found as whole ones are.", _cut),
    "cut_columns": ("Columns that are cut are found as whole ones are.", _cut_columns),
}


def _law(trait: str, statement: str, body: Callable[[SolverCase, Solver], None]) -> Law[SolverCase]:
    return Law(
        f"trait_{trait}",
        statement,
        where_it_computes(lambda trial: body(trial, declaring(trial, trait))),
        parameters=(FreeParameters("start"),),
        sides=(12, 18),
        max_rank=2,
        max_examples=1,
        needs=("contract", "recovery"),
        trial=Trial,
        entry="check_solver",
    )


LAWS = tuple(
    _law(trait.name, *_made)
    for trait in fields(Traits)
    if (_made := _BODIES[trait.name]) is not None
)
