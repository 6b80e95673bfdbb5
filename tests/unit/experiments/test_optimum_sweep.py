"""The sweep of optima: what a distance is, a fair beginning, and the record it writes."""

import pytest

from experiments import optimum_sweep
from experiments.optimum_sweep import (
    PROFILES,
    Fit,
    Task,
    distances,
    observations_of,
    rows,
    tasks,
)


def fit(rank: int, objective: float, gap: float, status: str = "CONVERGED") -> Fit:
    return Fit("random 0", 0.5, "HomogeneousBall", rank, 0, objective, gap, status, 0.1)


def test_a_distance_is_from_the_best_bound_of_any_rank() -> None:
    # Rank 5 proves 8 at least, rank 20 proves 9.9.
    fits = [fit(5, 12.0, 4.0, "RANK_BINDS"), fit(20, 10.0, 0.1)]
    assert distances(fits) == pytest.approx([2.1 / 12, 0.01])
    assert [["random", "HomogeneousBall", "2", "1", "1", "1.0e-02", "1.0e-02", "0.10"]] == rows(
        fits
    )


def test_a_beginning_meets_every_map() -> None:
    listed = tasks(PROFILES["cpu"])
    assert 5 * 5 * 10 * (50 * 3 + 5 * 3) == len(listed) == len(set(listed))
    assert set(optimum_sweep.MAPS) == {task.map for task in listed[:60]}


@pytest.mark.parametrize(
    "task",
    [
        Task("random 2", 0.5, "Contractions", 100, 0),
        Task("random 49", 0.2, "RadialBall", 20, 0),
    ],
)
def test_a_descent_that_crawls_is_helped(task: Task) -> None:
    # Descent alone left 35 % and 4 % of the objective, step by step out of where it had settled.
    assert optimum_sweep.fit(task, *observations_of(task.problem)).status == "CONVERGED"
