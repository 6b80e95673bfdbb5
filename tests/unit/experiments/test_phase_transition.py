"""The phase-transition experiment in small."""

import json

import pytest

from experiments import phase_transition
from experiments.phase_transition import SOLVERS, Trial, attempt, fractions


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


def test_quick_run_writes_table_record_and_figure(tmp_path, monkeypatch, capsys):
    class Here:
        def __init__(self, prepare):
            assert callable(prepare)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def run(self, calls, description):
            assert description == "planted matrices"
            return [Trial(*call.args, 1e-9, 0.1) for call in calls]

    monkeypatch.setattr(phase_transition, "Workers", Here)
    assert 0 == phase_transition.main(["--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "phase-transition.json").read_text("utf-8"))
    assert len(record["trials"]) == 4 * len(SOLVERS)
    assert (tmp_path / "phase-transition.png").stat().st_size > 0
    assert "gauss_newton" in capsys.readouterr().out
