"""Why a completion stops, which iterate it keeps, and what it shows meanwhile."""

import math

import pytest
import torch
from torch import Tensor

from lowrank_opt.completion import CompletionStatus, Iteration, complete
from lowrank_opt.errors import ConvergenceError
from lowrank_opt.sets import SchattenBall
from lowrank_opt.solvers import SOLVERS, Gibbs, MaxNorm
from tests.completion_cases import ball, factored, normal, observe, seeded


def test_validation_share_is_seeded_and_stops_early():
    observations = observe(normal(40, 30), 0.5)
    fits = [
        complete(
            observations, factored((40, 30), 10), validation=0.2, generator=seeded(5), patience=5
        )
        for _ in range(2)
    ]
    assert CompletionStatus.STOPPED_BY_VALIDATION is fits[0].status
    assert torch.equal(fits[0].to_dense(), fits[1].to_dense())


def test_best_iterate_by_validation_is_returned():
    whole = observe(normal(40, 2) @ normal(2, 30, seed=1) + 0.5 * normal(40, 30, seed=2), 0.5)
    train, held = whole.split(0.2, generator=seeded())
    fit = complete(train, factored((40, 30), 10), validation=held, patience=5)
    rmse = (fit.predict(held.rows, held.cols) - held.values).square().mean().sqrt()
    assert min(fit.history.validation_rmse) == pytest.approx(float(rmse))
    assert min(fit.history.validation_rmse) < fit.history.validation_rmse[-1]


def test_largest_number_of_iterations_is_a_status():
    fit = complete(observe(normal(20, 15), 0.7), ball((20, 15), 5, 10.0), max_iterations=2)
    assert (CompletionStatus.MAX_ITERATIONS, 3) == (fit.status, len(fit.history))
    with pytest.raises(ConvergenceError, match="must end by its tolerance; got, after 3 eval"):
        fit.raise_if_failed()


def test_success_raises_nothing():
    complete(observe(normal(20, 15), 0.7), ball((20, 15), 5, 10.0)).raise_if_failed()


def test_interrupt_keeps_the_best_iterate():
    def interrupt(iteration: Iteration) -> None:
        seen.append(iteration.objective)
        if len(seen) == 6:
            raise KeyboardInterrupt

    seen: list[float] = []
    observations = observe(normal(20, 15), 0.7)
    fit = complete(observations, ball((20, 15), 5, 10.0), bias=None, progress=interrupt)
    assert CompletionStatus.INTERRUPTED is fit.status
    residuals = fit.predict(observations.rows, observations.cols) - observations.values
    assert seen[4] == pytest.approx(float(residuals.square().sum() / 2))


@pytest.mark.parametrize("name", list(SOLVERS))
def test_interrupt_keeps_what_every_solver_has(name: str):
    def interrupt(iteration: Iteration) -> None:
        seen.append(iteration.objective)
        if len(seen) == 4:
            raise KeyboardInterrupt

    seen: list[float] = []
    model = {"lbfgs": ball((20, 15), 5, 10.0), "frank_wolfe": SchattenBall(1, 10.0, 15)}
    model |= {"first_order": model["lbfgs"], "singular_value_projection": 2}
    solver = {"max_norm": MaxNorm(radius=2.0, tolerance=0.0), "gibbs": Gibbs(burn_in=1, samples=9)}
    fit = complete(
        observe(normal(20, 15), 0.7),
        model.get(name, 3),
        solver=solver.get(name, name),
        penalty=0.1 if SOLVERS[name].traits.penalty == "needed" else 0.0,
        progress=interrupt,
    )
    assert (CompletionStatus.INTERRUPTED, 4) == (fit.status, len(seen))
    assert fit.predict([0], [0]).isfinite().all()


@pytest.mark.parametrize("solver", ["lbfgs", "first_order"])
def test_objective_that_is_not_finite_is_a_status(solver: str):
    calls: list[int] = []

    def breaks(residuals: Tensor) -> Tensor:
        calls.append(1)
        return residuals.square() * (math.nan if len(calls) > 8 else 1.0)

    fit = complete(observe(normal(9, 7), 0.7), factored((9, 7), 2), loss=breaks, solver=solver)
    assert CompletionStatus.NUMERICAL_TROUBLE is fit.status
    assert fit.to_dense().isfinite().all()


def test_progress_bar(capsys: pytest.CaptureFixture[str]):
    complete(observe(normal(9, 7), 0.7), factored((9, 7), 2), validation=0.2, progress=True)
    shown = capsys.readouterr().err
    assert "objective=" in shown
    assert "validation=" in shown


def test_silent_by_default(capsys: pytest.CaptureFixture[str]):
    complete(observe(normal(9, 7), 0.7), factored((9, 7), 2))
    assert ("", "") == capsys.readouterr()
