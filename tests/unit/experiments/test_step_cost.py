"""The experiment on steps of optimizers: its counts are right, its record is whole."""

import json

import pytest

from experiments import step_cost


def test_record_holds_every_optimizer(tmp_path, capsys):
    sizes = {"rows": 40, "cols": 30, "rank": 4, "turns": 3, "steps": 1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    costs = step_cost.main([*options, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "step-cost.json").read_text())
    assert [*step_cost.OPTIMIZERS] == [cost["name"] for cost in record["costs"]]
    assert [1.0] * 3 == costs[0].ratios
    assert all(len(cost.microseconds) == 3 for cost in costs)
    assert "over AdamW's fastest" in capsys.readouterr().out


PASSES = {
    "AdamW": 0,
    # Gram matrices of the factors, steps of the factors.
    "ScaledGD": 4,
    # Those of factors and gradients, products with the old frames, gradients and means in the step.
    "LoRARite": 10,
    # Gram matrices, the core, two terms for each factor.
    "LoRAPro": 7,
    # Products with the old frames and parts, three terms for each new part, one for each step.
    "LoRAPro, momentum": 15,
    # As LoRARite, but Gram matrices of the means, and their steps are products too.
    "SpectralDescent": 12,
}


@pytest.mark.parametrize(("name", "expected"), PASSES.items(), ids=PASSES)
def test_passes_over_the_factors_are_few(name, expected):
    pair = step_cost.random_pair(400, 300, 4)
    optimizer = step_cost.OPTIMIZERS[name](pair)
    optimizer.step()
    assert expected == pytest.approx(step_cost.passes(optimizer, pair), abs=0.2)
