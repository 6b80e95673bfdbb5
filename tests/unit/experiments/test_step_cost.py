"""The experiment on steps of optimizers: its counts are right, its record is whole."""

import pytest

from experiments import step_cost


def test_ratios_are_to_adamw_in_the_same_turn():
    costs = step_cost.measure((40, 30), 4, turns=3, steps=1)
    assert [*step_cost.OPTIMIZERS] == [cost.name for cost in costs]
    assert [1.0] * 3 == costs[0].ratios
    for cost in costs:
        pairs = zip(cost.microseconds, costs[0].microseconds, strict=True)
        assert cost.ratios == pytest.approx([mine / adamw for mine, adamw in pairs])


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
