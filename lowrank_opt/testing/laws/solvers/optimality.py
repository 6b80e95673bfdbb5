"""Is a certificate of optimality sound? Its bound against matrices that are there to see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lowrank_opt.completion import CompletionResult, ConvexProblem
from lowrank_opt.errors import LowRankError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.sets import FeasibleSet
from lowrank_opt.testing.cases.case import Trial
from lowrank_opt.testing.cases.oracle import Array, dense, singular_values, to_array
from lowrank_opt.testing.cases.parameters import FreeParameters
from lowrank_opt.testing.cases.planted import SolverCase, planted
from lowrank_opt.testing.cases.solver_objects import default_kind
from lowrank_opt.testing.laws.solvers.results import solved_once, where_it_computes
from lowrank_opt.testing.search.law import Law
from lowrank_opt.testing.search.verdict import NotApplicable, expect

# Of gradient descent from the result, in search of a better matrix.
_STEPS = 200
_CONVEX = ("parameterization", "spectral set", "set")


def _certificate(trial: SolverCase) -> None:
    problem, result = planted(trial, noise=0.3), solved_once(trial, noise=0.3)
    if getattr(result, "problem", None) is None or result.problem is None:
        solver = trial.make.solver
        promised = (
            solver is not None and solver.traits.certificate and default_kind(solver) in _CONVEX
        )
        expect(not promised, "the solver declares certificates; this result names no problem")
        raise NotApplicable("the result names no convex problem, so it has no certificate")
    try:
        found = result.certificate()
    except LowRankError as reason:
        raise NotApplicable(f"no certificate: {reason}") from None
    own = _objective(result.problem, result, dense(result.operator))
    slack = max(1e-6, 16 * trial.eps) * (1 + abs(own))
    expect(
        abs(found.objective - own) <= slack,
        f"the certificate says the objective is {found.objective:.9g}; it is {own:.9g}",
    )
    best = min(_objective(result.problem, result, W) for W in _members(result, problem.truth))
    expect(
        found.lower_bound <= min(best, own) + slack,
        f"the bound is {found.lower_bound:.9g}, but a feasible matrix has {min(best, own):.9g}",
    )


def _members(result: CompletionResult, truth: Array) -> Iterator[Array]:
    """Yield matrices of the problem's set: the truth made to fit, and descents from the result."""
    problem = result.problem
    assert problem is not None, "asked before"
    yield _fitted(problem, truth, 0.0)
    W = dense(result.operator)
    step = 1.0 / float(np.max(_weights(problem), initial=1.0))
    for index in range(_STEPS):
        W = _fitted(problem, W - step * _gradient(problem, result, W), step)
        if index % 20 == 19:
            yield W


def _fitted(problem: ConvexProblem, W: Array, step: float) -> Array:
    """Return the proximal point: the projection onto the set, or shrunken singular values."""
    if isinstance(problem.constraint, FeasibleSet):
        op = LowRankOperator.from_dense(torch.from_numpy(np.ascontiguousarray(W)))
        return dense(problem.constraint.project(op))
    U, sigma, Vh = np.linalg.svd(W, full_matrices=False)
    return (U * np.maximum(sigma - step * problem.constraint, 0.0)) @ Vh


def _residuals(problem: ConvexProblem, result: CompletionResult, W: Array) -> Array:
    obs, bias = problem.observations, result.bias
    i, j = obs.rows.cpu().numpy(), obs.cols.cpu().numpy()
    shift = bias.mean + to_array(bias.rows)[i] + to_array(bias.cols)[j]
    return W[i, j] + shift - to_array(obs.values)


def _weights(problem: ConvexProblem) -> Array:
    obs = problem.observations
    return np.ones(len(obs)) if obs.weights is None else to_array(obs.weights)


def _gradient(problem: ConvexProblem, result: CompletionResult, W: Array) -> Array:
    obs, G = problem.observations, np.zeros_like(W)
    i, j = obs.rows.cpu().numpy(), obs.cols.cpu().numpy()
    G[i, j] = _weights(problem) * _residuals(problem, result, W)
    return G


def _objective(problem: ConvexProblem, result: CompletionResult, W: Array) -> float:
    value = 0.5 * float(_weights(problem) @ _residuals(problem, result, W) ** 2)
    if problem.bias_penalty is not None:
        parts = to_array(result.bias.rows), to_array(result.bias.cols)
        value += 0.5 * problem.bias_penalty * sum(float(x @ x) for x in parts)
    if not isinstance(problem.constraint, FeasibleSet):
        value += problem.constraint * float(singular_values(W).sum())
    return value


LAWS = (
    Law(
        "certificate",
        "No feasible matrix is better than the certificate allows.",
        where_it_computes(_certificate),
        parameters=(FreeParameters("start"),),
        sides=(12, 18),
        max_rank=2,
        max_examples=3,
        needs=("contract",),
        trial=Trial,
        entry="check_solver",
    ),
)
