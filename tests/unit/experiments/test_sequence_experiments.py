"""The scripts of tasks in sequence and of rates over ranks run, in small."""

import json

import pytest

from experiments import spectral_rates, tasks_in_sequence


@pytest.mark.parametrize("method", tasks_in_sequence.METHODS)
def test_sequence_runs_and_protects_what_it_says(method, monkeypatch):
    monkeypatch.setattr(tasks_in_sequence, "WIDTH", 96)
    monkeypatch.setattr(tasks_in_sequence, "RTOL", 3e-2)
    outcome = tasks_in_sequence.run(method, 0, steps=3)
    assert 5 == len(outcome.accuracies)
    if method == "LoRA outside of earlier inputs":
        # Directions of small inputs are left out; all others see nothing.
        assert outcome.drift < 0.2


def test_best_rate_counts_divergence_as_the_worst():
    runs = [
        spectral_rates.Run("AdamW", 2, 8, 1.0, lr, seed, loss)
        for lr, seed, loss in ((0.1, 0, 2.0), (0.1, 1, 2.0), (1.0, 0, 1.0), (1.0, 1, float("nan")))
    ]
    assert 0.1 == spectral_rates.best_rate(runs)


def test_rates_are_written(tmp_path):
    assert 0 == spectral_rates.main(["--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "spectral-rates.json").read_text())
    assert 4 == len(record["runs"])
