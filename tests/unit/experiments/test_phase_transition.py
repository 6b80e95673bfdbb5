"""The phase-transition experiment in small."""

import pytest

from experiments import phase_transition
from experiments.phase_transition import Trial, attempt, fractions


@pytest.mark.parametrize("solver", ["gauss_newton", "als", "soft_impute"])
def test_attempt_measures_the_error_over_all_entries(solver, monkeypatch):
    monkeypatch.setattr(phase_transition, "SIDE", 30)
    trial = attempt(solver, 1.0, 4.5, 0)
    assert trial.error < (0.1 if solver == "soft_impute" else 1e-4)


def trial(error, share, seed):
    return Trial("als", 1.0, share, seed, error, 0.1)


def test_fractions_count_recoveries_in_the_order_of_oversampling():
    trials = [trial(1e-9, 4.0, 0), trial(1e-9, 4.0, 1), trial(1e-9, 1.5, 0), trial(0.3, 1.5, 1)]
    assert [0.5, 1.0] == fractions(trials, "als", 1.0)
