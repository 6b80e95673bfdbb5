"""The scripts of tasks in sequence and of rates over ranks run, in small."""

import pytest
import torch

import lowrank_opt as lo
from experiments import spectral_rates, tasks_in_sequence


@pytest.mark.parametrize("method", tasks_in_sequence.METHODS)
def test_sequence_runs_and_protects_what_it_says(method, monkeypatch):
    monkeypatch.setattr(tasks_in_sequence, "WIDTH", 96)
    monkeypatch.setattr(tasks_in_sequence, "RTOL", 3e-2)
    monkeypatch.setattr(tasks_in_sequence, "KEEP", 24)
    outcome = tasks_in_sequence.run(method, 0, steps=3)
    assert 5 == len(outcome.accuracies)
    assert (method == "LoRA") == (outcome.promise is None)
    assert (outcome.promise or 0.0) <= 1.0
    if method == "InfLoRA":
        # Directions of small inputs are left out; all others see nothing.
        assert outcome.drift < 0.2


def test_promise_counts_units_of_rounding():
    """An update that acts on what it says to protect: as many units as were put in."""
    update = lo.Complement(lo.Factored((3, 4), 1), right=torch.eye(4, 1))
    assert 0 == tasks_in_sequence.promise(update)
    with torch.no_grad():
        update.inner.left.fill_(1.0)
        update.inner.right.copy_(torch.eye(4)[:, 1:2])
    assert 0 == tasks_in_sequence.promise(update)
    update.right.copy_(torch.eye(4)[:, 1:2])
    with torch.no_grad():
        update.inner.right.copy_(torch.eye(4)[:, :1])
        update.factors = lambda: (
            update.inner.factors() + 1e-6 * lo.LowRankOperator.from_dense(torch.ones(3, 4))
        )
    assert tasks_in_sequence.promise(update) > 1


@pytest.mark.parametrize(("lr", "price"), [(0.1, [1.0, 1.0]), (1.0, [1.5, 3.0])])
def test_price_is_relative_to_the_best_rate(lr, price):
    runs = [
        spectral_rates.Run("AdamW", 2, 8, 1.0, rate, seed, loss)
        for rate, seed, loss in ((0.1, 0, 2.0), (0.1, 1, 1.0), (1.0, 0, 3.0), (1.0, 1, 3.0))
    ]
    assert price == spectral_rates.price(runs, lr)


def test_best_rate_counts_divergence_as_the_worst():
    runs = [
        spectral_rates.Run("AdamW", 2, 8, 1.0, lr, seed, loss)
        for lr, seed, loss in ((0.1, 0, 2.0), (0.1, 1, 2.0), (1.0, 0, 1.0), (1.0, 1, float("nan")))
    ]
    assert 0.1 == spectral_rates.best_rate(runs)
