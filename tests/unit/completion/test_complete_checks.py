"""What a completion allocates, and what it refuses before any work."""

import math
from collections.abc import Callable

import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.completion import Iteration, complete
from lowrank_opt.completion.model.bias import fit_additive_bias
from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.observations import Observations
from tests.completion_cases import LargestAllocation, factored, normal, observe, seeded

Make = Callable[[], lo.Parameterization]


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_memory_of_a_fit(loss: str):
    m, n, nnz, rank = 400, 300, 9000, 10
    cells = torch.randperm(m * n, generator=seeded())[:nnz]
    observations = Observations(cells // n, cells % n, normal(nnz), (m, n))
    parameterization = factored((m, n), rank)
    with LargestAllocation() as largest:
        complete(observations, parameterization, loss=loss, max_iterations=5, validation=0.1)
    # L-BFGS flattens all variables into one vector.
    assert largest.numel <= max(nnz, (m + n) * (rank + 1)) < nnz * rank < m * n


def frozen() -> lo.Factored:
    return factored((9, 7), 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (lambda: factored((7, 9), 2), {}, ShapeError, r"got \(7, 9\) for \(9, 7\)"),
        (lambda: factored((9, 7), 2).half(), {}, ShapeError, r"got \['torch.float16'\]"),
        (frozen, {}, ShapeError, "got none"),
        (lambda: factored((9, 7), 2).to("meta"), {}, ShapeError, r"got \['meta'\] and cpu"),
        (None, {"loss": "l2"}, OptionError, "loss must be 'squared', .* got loss='l2'"),
        (None, {"optimizer": "sgd"}, OptionError, r"every solver have; got \['optimizer'\]: pass"),
        (None, {"bias": "rows"}, OptionError, "bias must be 'additive' or None; got bias='rows'"),
        (None, {"progress": 3}, OptionError, "progress must be"),
        (None, {"penalty": -1.0}, OptionError, "nonnegative; got penalty=-1.0"),
        (None, {"bias_penalty": math.nan}, OptionError, "got bias_penalty=nan"),
        (None, {"tolerance": -1e-3}, OptionError, "got tolerance=-0.001"),
        (None, {"max_iterations": 0}, OptionError, "positive integer; got max_iterations=0"),
        (None, {"patience": 1.5}, OptionError, "positive integer; got patience=1.5"),
        (None, {"validation": 1.0}, ObservationError, r"a fraction in \(0, 1\)"),
        (
            None,
            {"validation": Observations([0], [0], [1.0], (2, 2))},
            ShapeError,
            r"same matrix, .* got \(2, 2\) on cpu for \(9, 7\)",
        ),
    ],
)
def test_refused_before_any_work(
    make: Make | None, settings: dict[str, object], error: type[Exception], message: str
):
    def never(iteration: Iteration) -> None:
        raise AssertionError("work started")

    parameterization = factored((9, 7), 2) if make is None else make()
    with pytest.raises(error, match=message):
        complete(observe(normal(9, 7), 0.7), parameterization, **({"progress": never} | settings))


def test_values_that_overflow_the_parameters():
    observations = Observations([0], [0], torch.tensor([1e300], dtype=torch.float64), (3, 2))
    with pytest.raises(ObservationError, match=r"finite in torch.float32"):
        complete(observations, lo.Factored((3, 2), 1))


@pytest.mark.parametrize("penalty", [-1.0, math.inf, math.nan])
def test_bias_penalty_of_the_additive_model_must_be_finite(penalty):
    with pytest.raises(OptionError, match="penalty must be finite and nonnegative"):
        fit_additive_bias(observe(normal(6, 5), 0.7), penalty=penalty)
