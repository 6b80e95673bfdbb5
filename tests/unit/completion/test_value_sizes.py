"""Values of any size are completed, or refused before the work: none passes for an exact fit."""

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion.catalog import SOLVERS
from lowrank_opt.errors import ObservationError
from tests.completion_cases import normal, observe, seeded

# What each solver that takes the squared loss is given for its model, in the unit of the values.
RADIUS = 8.0


def error(solver: str, unit: float) -> float:
    """Return the relative error of a fit to values in this unit."""
    observations = observe(normal(12, 2, seed=1) @ normal(2, 9, seed=2) * unit, 0.8)
    sets, model = SOLVERS[solver].traits.sets, 2
    if "rank" not in sets:
        model = (
            lo.SchattenBall(1, RADIUS * unit, 9)
            if "spectral set" in sets
            else lo.HomogeneousBall((12, 9), 3, radius=RADIUS * unit, dtype=torch.float64)
        )
    penalty = {"penalty": 0.1 * unit} if SOLVERS[solver].traits.penalty == "needed" else {}
    fit = lo.complete(observations, model, solver=solver, generator=seeded(0), **penalty)
    residuals = fit.predict(observations.rows, observations.cols) - observations.values
    return float((residuals / unit).square().mean().sqrt())


@pytest.mark.parametrize("unit", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_squares_that_vanish_or_overflow_are_refused(solver: str, unit: float) -> None:
    with pytest.raises(ObservationError, match=r"squares|between"):
        error(solver, unit)


@pytest.mark.parametrize("unit", [1e-100, 1e100])
@pytest.mark.parametrize("solver", ["lbfgs", "frank_wolfe", "soft_impute", "als"])
def test_sizes_in_between_make_no_difference(solver: str, unit: float) -> None:
    assert error(solver, unit) == pytest.approx(error(solver, 1.0), rel=1e-3)


def test_zeros_have_no_size_that_could_be_wrong() -> None:
    zeros = observe(torch.zeros(5, 4).double(), 0.9)
    assert lo.complete(zeros, lo.HomogeneousBall((5, 4), 1, radius=1.0)).status.succeeded
