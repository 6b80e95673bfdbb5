"""Solver objects that do not do what they declare, one trait each, and which law must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lowrank_opt.completion import CompletionProblem, CompletionResult
from lowrank_opt.completion.solvers.context import Run
from lowrank_opt.observations.parts import is_cut
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.solvers import LBFGS, GaussNewton, Solver, Traits, Variational

Solve = Callable[[CompletionProblem, Run], CompletionResult]


def _declaring(solve: Solve, traits: Traits) -> Solver:
    """Return a function as a solver object with traits of its own."""

    @dataclass(frozen=True)
    class Declared:
        traits: ClassVar[Traits]

        def solve(self, problem: CompletionProblem, run: Run) -> CompletionResult:
            return solve(problem, run)

    Declared.traits = traits
    return Declared()


EXACT = replace(GaussNewton.traits, devices=("cpu",))
exact = GaussNewton().solve


def of_full_rank(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    W = result.operator.to_dense()
    return replace(
        result, operator=LowRankOperator.from_dense(W + 1e-2 * torch.eye(*W.shape).to(W))
    )


def least_squares(problem: CompletionProblem, run: Run) -> CompletionResult:
    return LBFGS(tolerance=1e-7).solve(replace(problem, loss="squared"), run)


def unbiased(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(replace(problem, bias=None), run)


def always_biased(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(replace(problem, bias="additive"), run)


def penalty_free(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(replace(problem, penalty=0.0), run)


def free_biases(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(replace(problem, bias_penalty=1e-6), run)


def featureless(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(replace(problem, row_features=()), run)


def in_double(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    return replace(result, operator=result.operator.to(dtype=torch.float64))


def elsewhere(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    return replace(result, operator=result.operator.to(device="meta"))


def last_iterate(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    return replace(result, operator=1.1 * result.operator)


def anew(problem: CompletionProblem, run: Run) -> CompletionResult:
    return exact(problem, replace(run, start=None))


def unresumed(problem: CompletionProblem, run: Run) -> CompletionResult:
    return Variational().solve(problem, replace(run, checkpoint=None))


def uncertified(problem: CompletionProblem, run: Run) -> CompletionResult:
    return replace(LBFGS().solve(problem, run), problem=None)


def lost_in_a_group(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    share = 0.5 if torch.distributed.is_initialized() else 1.0
    return replace(result, operator=share * result.operator)


def lost_where_columns_are_cut(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    share = 0.5 if is_cut(problem.observations, 1) else 1.0
    return replace(result, operator=share * result.operator)


def lost_where_cut(problem: CompletionProblem, run: Run) -> CompletionResult:
    result = exact(problem, run)
    share = 0.5 if is_cut(problem.observations) else 1.0
    return replace(result, operator=share * result.operator)


# By the trait that is declared and not kept.
BROKEN_TRAITS: dict[str, Solver] = {
    "sets": _declaring(of_full_rank, EXACT),
    "losses": _declaring(least_squares, LBFGS.traits),
    "biases": _declaring(unbiased, EXACT),
    "biases, none": _declaring(always_biased, EXACT),
    "penalty": _declaring(penalty_free, replace(EXACT, penalty="yes")),
    "bias_penalty": _declaring(free_biases, EXACT),
    "side": _declaring(featureless, replace(EXACT, side=True)),
    "dtypes": _declaring(in_double, EXACT),
    "devices": _declaring(elsewhere, EXACT),
    "validation": _declaring(last_iterate, EXACT),
    "start": _declaring(anew, replace(EXACT, start=True)),
    "checkpoint": _declaring(unresumed, Variational.traits),
    "certificate": _declaring(uncertified, LBFGS.traits),
    "distributed": _declaring(lost_in_a_group, replace(EXACT, distributed=True)),
    "cut": _declaring(lost_where_cut, replace(EXACT, distributed=True, cut=True)),
    "cut_columns": _declaring(
        lost_where_columns_are_cut,
        replace(EXACT, distributed=True, cut=True, cut_columns=True),
    ),
}

# Sound, and able to do little: (solver, laws that must be skipped).
MODEST: dict[str, tuple[Solver, set[str]]] = {
    "no weights": (
        _declaring(exact, replace(EXACT, weights=False)),
        {"weights", "weighted_loss"},
    ),
    "single precision": (_declaring(exact, replace(EXACT, dtypes=(torch.float32,))), set()),
    "no validation": (
        _declaring(exact, replace(EXACT, validation=False)),
        {"trait_validation"},
    ),
    "biases never": (
        _declaring(exact, replace(EXACT, biases=("none",))),
        {"trait_bias_penalty"},
    ),
}
NOWHERE = _declaring(exact, replace(EXACT, devices=("xpu",)))
ALWAYS_BIASED = _declaring(exact, replace(EXACT, biases=("additive",)))
