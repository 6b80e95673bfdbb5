"""Laws of completion solvers: recovery, symmetries of the problem, feasibility, weights."""

from __future__ import annotations

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.testing.cases.case import Subject
from lowrank_opt.testing.cases.charts import chart_of
from lowrank_opt.testing.cases.oracle import Array, dense
from lowrank_opt.testing.cases.planted import Planted, SolverTrial, difference, planted, predictions
from lowrank_opt.testing.search.verdict import NotApplicable, expect


def trial_of(subject: Subject) -> SolverTrial:
    """Return the solver on trial."""
    assert isinstance(subject.make, SolverTrial), "laws of solvers work on a trial"
    return subject.make


def solved(subject: Subject, problem: Planted) -> CompletionResult:
    """Return the solver's result on a problem."""
    return trial_of(subject).solve(problem.observations, problem.rank, seed=subject.seed)


def contract(subject: Subject) -> None:
    """Expect a result of the right shape with finite predictions, and untouched observations."""
    problem = planted(subject)
    values = problem.observations.values.clone()
    result = solved(subject, problem)
    kind = type(result).__name__
    expect(hasattr(result, "predict"), f"the solver returned {kind}, which cannot predict")
    expect(result.shape == problem.observations.shape, f"the result is of shape {result.shape}")
    expect(bool(np.isfinite(predictions(result)).all()), "a prediction is not finite")
    same = torch.equal(values, problem.observations.values)
    expect(same, "the solver writes to the observed values")


def recovery(subject: Subject) -> None:
    """Expect the planted matrix, where it was not observed as well."""
    problem = planted(subject)
    _near(subject, problem, predictions(solved(subject, problem)), problem.truth, "of all entries")


def repetition(subject: Subject) -> None:
    """Expect the same result from the same generator."""
    problem = planted(subject)
    first, again = (predictions(solved(subject, problem)) for _ in range(2))
    error = difference(first, again, problem.size)
    expect(error <= 1e-4, f"two runs from one generator differ by {error:.2e} of the entries' size")


def feasibility(subject: Subject) -> None:
    """Expect the operator of the result in the declared set, on noisy entries too."""
    for noise in (0.0, 0.3):
        problem = planted(subject, noise=noise)
        op = getattr(solved(subject, problem), "operator", None)
        if not isinstance(op, LowRankOperator):
            raise NotApplicable("the result has no single operator")
        feasible_set = trial_of(subject).feasible_set(op.shape, problem.rank)
        chart, W = chart_of(feasible_set), dense(op)
        excess, allowed = chart.excess(W), 1e-5 * chart.size(W)
        expect(excess <= allowed, f"the result leaves {feasible_set} by {excess:.2e}")


def permutations(subject: Subject) -> None:
    """Expect permuted predictions for permuted rows and columns."""
    problem, rng = planted(subject), subject.rng
    obs, (m, n) = problem.observations, problem.observations.shape
    i, j = torch.from_numpy(rng.permutation(m)), torch.from_numpy(rng.permutation(n))
    moved = Observations(i[obs.rows], j[obs.cols], obs.values, (m, n))
    truth = predictions(solved(subject, problem))
    found = predictions(solved(subject, Planted(problem.truth, moved, problem.rank)))
    _near(subject, problem, found[i.numpy()][:, j.numpy()], truth, "with rows and columns permuted")


def transposition(subject: Subject) -> None:
    """Expect transposed predictions for the transposed problem."""
    problem = planted(subject)
    obs, (m, n) = problem.observations, problem.observations.shape
    turned = Observations(obs.cols, obs.rows, obs.values, (n, m))
    truth = predictions(solved(subject, problem))
    found = predictions(solved(subject, Planted(problem.truth.T, turned, problem.rank)))
    _near(subject, problem, found.T, truth, "of the transposed problem")


def order(subject: Subject) -> None:
    """Expect the order of the entries not to matter."""
    problem = planted(subject)
    shuffled = problem.restricted(
        torch.from_numpy(subject.rng.permutation(len(problem.observations)))
    )
    truth = predictions(solved(subject, problem))
    _near(subject, problem, predictions(solved(subject, shuffled)), truth, "in another order")


def weights(subject: Subject) -> None:
    """Expect entries of weight zero to count for nothing, and those of a constant weight alike."""
    problem = planted(subject)
    obs, count = problem.observations, len(problem.observations)
    wrong = torch.from_numpy(subject.rng.permutation(count) < count // 10)
    values = torch.where(wrong, obs.values + 5 * problem.size, obs.values)
    weighted = Observations(obs.rows, obs.cols, values, obs.shape, (~wrong).to(values))
    kept = predictions(solved(subject, problem.restricted(torch.nonzero(~wrong).squeeze(1))))
    found = predictions(solved(subject, Planted(problem.truth, weighted, problem.rank)))
    _near(subject, problem, found, kept, "with wrong entries of weight zero")


def unseen(subject: Subject) -> None:
    """Expect finite predictions in a row and a column without entries, the others unharmed."""
    problem = planted(subject)
    obs = problem.observations
    kept = torch.nonzero((obs.rows != 0) & (obs.cols != 1)).squeeze(1)
    found = predictions(solved(subject, problem.restricted(kept)))
    expect(bool(np.isfinite(found).all()), "a prediction for an unseen row or column is not finite")
    rest = np.delete(np.delete(found, 0, axis=0), 1, axis=1)
    truth = np.delete(np.delete(problem.truth, 0, axis=0), 1, axis=1)
    _near(subject, problem, rest, truth, "beside an unseen row and column")


def _near(subject: Subject, problem: Planted, found: Array, truth: Array, what: str) -> None:
    error, allowed = difference(found, truth, problem.size), trial_of(subject).rtol
    expect(
        error <= allowed,
        f"predictions {what} are off by {error:.2e} of the entries' size; {allowed:g} is allowed",
    )
