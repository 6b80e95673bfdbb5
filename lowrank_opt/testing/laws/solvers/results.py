"""Results on planted problems: recovery, symmetries of the problem, feasibility, weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.solvers import Solver
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.charts import chart_of
from lowrank_opt.testing.cases.oracle import Array, dense, to_array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.planted import (
    Planted,
    SolverCase,
    difference,
    larger,
    planted,
    predictions,
)
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# The weight of entries that are wrong.
_LIGHT = 1e-8
# By how much more a solver may lose than under other weights, in units of the allowed error.
_LOSS = 2.0


def declaring(trial: SolverCase, trait: str) -> Solver:
    """Return the solver object that declares a trait; else raise `NotApplicable`."""
    solver = trial.make.solver
    if solver is None:
        raise NotApplicable("a function declares no traits: pass a solver object")
    value = getattr(solver.traits, trait)
    if value in (False, "no"):
        raise NotApplicable(f"the solver declares {trait}={value!r}")
    return solver


def where_it_computes(body: Callable[[SolverCase], None]) -> Callable[[SolverCase], None]:
    """Return the body of a law, not applicable in a dtype or on a device that is not declared."""

    def checked(trial: SolverCase) -> None:
        solver = trial.make.solver
        if solver is not None and trial.dtype not in solver.traits.dtypes:
            raise NotApplicable(f"the solver does not compute in {trial.dtype}")
        if solver is not None and not solver.traits.computes_on(trial.device.type):
            raise NotApplicable(f"the solver does not compute on the {trial.device.type}")
        body(trial)

    return checked


def solved(trial: SolverCase, problem: Planted) -> CompletionResult:
    """Return the solver's result on a problem."""
    return trial.make.solve(problem.observations, problem.rank, seed=trial.seed)


def solved_once(trial: SolverCase, *, noise: float = 0.0) -> CompletionResult:
    """Return the solver's result on the planted problem of the case: one for the laws of a check.

    Only `repetition` is about what the solver does with the same problem another time.
    """
    key, found = (trial.case, trial.dtype, trial.device, noise), trial.make.found
    if key not in found:
        found[key] = solved(trial, planted(trial, noise=noise))
    return found[key]


def _contract(trial: SolverCase) -> None:
    problem = planted(trial)
    obs, count = problem.observations, len(problem.observations)
    weights = torch.from_numpy(trial.rng.uniform(0.5, 2.0, count)).to(obs.values)
    weighted = Observations(obs.rows, obs.cols, obs.values, obs.shape, weights)
    solver = trial.make.solver
    for given in (obs, weighted) if solver is None or solver.traits.weights else (obs,):
        kept = {name: x.clone() for name, x in _tensors(given).items()}
        result = solved(trial, Planted(problem.truth, given, problem.rank))
        kind = type(result).__name__
        expect(hasattr(result, "predict"), f"the solver returned {kind}, which cannot predict")
        expect(result.shape == obs.shape, f"the result is of shape {result.shape}")
        expect(bool(np.isfinite(predictions(result)).all()), "a prediction is not finite")
        changed = [k for k, x in _tensors(given).items() if not torch.equal(x, kept[k])]
        expect(not changed, f"the solver writes to the observed {', '.join(changed)}")


def _tensors(obs: Observations) -> dict[str, torch.Tensor]:
    found = {"rows": obs.rows, "cols": obs.cols, "values": obs.values}
    return found if obs.weights is None else {**found, "weights": obs.weights}


def _recovery(trial: SolverCase) -> None:
    problem = planted(trial)
    near(trial, problem, predictions(solved_once(trial)), problem.truth, "of all entries")


def _ranks(trial: SolverCase) -> None:
    if not trial.make.takes_rank:
        raise NotApplicable("the solver has a rank of its own")
    for rows, cols, rank in ((16, 14, 3), (48, 40, 5)):
        problem = larger(trial, rows, cols, rank)
        found = predictions(solved(trial, problem))
        m, n = problem.observations.shape
        near(trial, problem, found, problem.truth, f"of a {m} x {n} matrix of rank {rank}")


def _large(trial: SolverCase) -> None:
    for rows, cols in ((90, 20), (20, 90)):
        problem = larger(trial, rows, cols, trial.case.rank)
        m, n = problem.observations.shape
        found = predictions(solved(trial, problem))
        near(trial, problem, found, problem.truth, f"of a {m} x {n} matrix")


def _repetition(trial: SolverCase) -> None:
    problem = planted(trial)
    obs = problem.observations
    negated = Observations(obs.rows, obs.cols, -obs.values, obs.shape)
    other = Planted(-problem.truth, negated, problem.rank)
    first, again = (predictions(solved(trial, problem)) for _ in range(2))
    between = predictions(solved(trial, other))
    near(trial, other, between, other.truth, "of another problem of the same shape")
    after = predictions(solved(trial, problem))
    for found, when in ((again, ""), (after, ", another problem between them,")):
        error = difference(first, found, problem.size)
        expect(
            error <= 1e-4,
            f"two runs from one generator{when} differ by {error:.2e} of the entries' size",
        )


def _feasibility(trial: SolverCase) -> None:
    for noise in (0.0, 0.3):
        problem = planted(trial, noise=noise)
        op = getattr(solved_once(trial, noise=noise), "operator", None)
        if not isinstance(op, LowRankOperator):
            raise NotApplicable("the result has no single operator")
        feasible_set = trial.make.feasible_set(op.shape, problem.rank)
        chart, W = chart_of(feasible_set), dense(op)
        excess, allowed = chart.excess(W), 1e-5 * chart.size(W)
        expect(excess <= allowed, f"the result leaves {feasible_set} by {excess:.2e}")


def _permutations(trial: SolverCase) -> None:
    problem, rng = planted(trial), trial.rng
    obs, (m, n) = problem.observations, problem.observations.shape
    i, j = torch.from_numpy(rng.permutation(m)), torch.from_numpy(rng.permutation(n))
    moved = Observations(i[obs.rows], j[obs.cols], obs.values, (m, n))
    truth = predictions(solved_once(trial))
    found = predictions(solved(trial, Planted(problem.truth, moved, problem.rank)))
    near(trial, problem, found[i.numpy()][:, j.numpy()], truth, "with rows and columns permuted")


def _transposition(trial: SolverCase) -> None:
    problem = planted(trial)
    obs, (m, n) = problem.observations, problem.observations.shape
    turned = Observations(obs.cols, obs.rows, obs.values, (n, m))
    truth = predictions(solved_once(trial))
    found = predictions(solved(trial, Planted(problem.truth.T, turned, problem.rank)))
    near(trial, problem, found.T, truth, "of the transposed problem")


def _order(trial: SolverCase) -> None:
    problem = planted(trial)
    shuffled = problem.restricted(
        torch.from_numpy(trial.rng.permutation(len(problem.observations)))
    )
    truth = predictions(solved_once(trial))
    near(trial, problem, predictions(solved(trial, shuffled)), truth, "in another order")


def _weights(trial: SolverCase) -> None:
    _requires_weights(trial)
    problem = planted(trial)
    obs, count = problem.observations, len(problem.observations)
    wrong = torch.from_numpy(trial.rng.permutation(count) < count // 10)
    values = torch.where(wrong, obs.values + 5 * problem.size, obs.values)
    kept = predictions(solved(trial, problem.restricted(torch.nonzero(~wrong).squeeze(1))))
    for light, what in ((0.0, "no weight"), (_LIGHT, "next to no weight")):
        weights = torch.where(wrong, light, 1.0).to(values)
        weighted = Observations(obs.rows, obs.cols, values, obs.shape, weights)
        found = predictions(solved(trial, Planted(problem.truth, weighted, problem.rank)))
        near(trial, problem, found, kept, f"with wrong entries of {what}")


def _weighted_loss(trial: SolverCase) -> None:
    _requires_weights(trial)
    problem = planted(trial, noise=0.3)
    obs, count = problem.observations, len(problem.observations)
    weights = torch.from_numpy(np.where(trial.rng.random(count) < 0.5, 1.0, 0.04)).to(obs.values)
    losses = [
        _loss(trial, problem, weights, weights**power / (weights**power).mean())
        for power in (1.0, 0.5, 2.0, 0.0)
    ]
    allowed = (1 + _LOSS * trial.make.rtol) * min(losses)
    expect(
        losses[0] <= allowed,
        f"the weighted loss of the result is {losses[0]:.4g}; under other weights the solver comes "
        f"to {min(losses):.4g}",
    )


def _requires_weights(trial: SolverCase) -> None:
    if trial.make.solver is not None:
        declaring(trial, "weights")


def _loss(trial: SolverCase, problem: Planted, weights: torch.Tensor, given: torch.Tensor) -> float:
    """Return the loss under weights of what is found under others."""
    obs = problem.observations
    weighted = Observations(obs.rows, obs.cols, obs.values, obs.shape, given)
    found = predictions(solved(trial, Planted(problem.truth, weighted, problem.rank)))
    errors = found[obs.rows.cpu().numpy(), obs.cols.cpu().numpy()] - to_array(obs.values)
    return float(to_array(weights) @ errors**2)


def _unseen(trial: SolverCase) -> None:
    problem = planted(trial)
    obs = problem.observations
    kept = torch.nonzero((obs.rows != 0) & (obs.cols != 1)).squeeze(1)
    found = predictions(solved(trial, problem.restricted(kept)))
    expect(bool(np.isfinite(found).all()), "a prediction for an unseen row or column is not finite")
    rest = np.delete(np.delete(found, 0, axis=0), 1, axis=1)
    truth = np.delete(np.delete(problem.truth, 0, axis=0), 1, axis=1)
    near(trial, problem, rest, truth, "beside an unseen row and column")


def near(trial: SolverCase, problem: Planted, found: Array, truth: Array, what: str) -> None:
    """Expect predictions to be as close to the truth as the user allows."""
    error, allowed = difference(found, truth, problem.size), trial.make.rtol
    expect(
        error <= allowed,
        f"predictions {what} are off by {error:.2e} of the entries' size; {allowed:g} is allowed",
    )


_NEEDS = {"contract": (), "recovery": ("contract",), "large": ("contract", "recovery", "ranks")}


def _law(
    name: str, statement: str, body: Callable[[SolverCase], None], max_examples: int = 3
) -> Law[SolverCase]:
    return Law(
        name,
        statement,
        where_it_computes(body),
        parameters=(FreeParameters("start"),),
        sides=(12, 18),
        max_rank=2,
        max_examples=max_examples,
        needs=_NEEDS.get(name, ("contract", "recovery")),
        trial=Trial,
        entry="check_solver",
    )


LAWS = (
    _law("contract", "A result, finite, and nothing else is changed.", _contract),
    _law("recovery", "A planted matrix of low rank is found from exact entries.", _recovery),
    _law("ranks", "Ranks above 2 are found too, in larger matrices.", _ranks, 1),
    _law("large", "A long and a wide matrix of low rank are found.", _large, 1),
    _law("feasibility", "The result is in the declared set.", _feasibility),
    _law("permutations", "Permuting rows and columns permutes the result.", _permutations),
    _law("transposition", "Transposing the problem transposes the result.", _transposition),
    _law("order", "The order of the entries does not matter.", _order),
    _law("weights", "Entries of weight zero, or next to it, count for nothing.", _weights),
    _law("weighted_loss", "The loss of weights is least under these weights.", _weighted_loss, 2),
    _law("unseen", "Rows and columns without entries are predicted, finitely.", _unseen),
    _law(
        "repetition", "The same generator gives the same result, whatever was solved.", _repetition
    ),
)
