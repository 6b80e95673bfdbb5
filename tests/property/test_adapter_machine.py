"""Adapters in every order, against the dictionary model; and defects that must be found."""

import pytest

import lowrank_opt as lo
from lowrank_opt.testing.laws.adapter_machine import adapter_machine, play_out
from lowrank_opt.testing.laws.adapter_play import Play
from lowrank_opt.testing.search.verdict import Violation
from tests.property.adapter_stages import STAGES
from tests.property.broken_operations import BROKEN_OPERATIONS, merge_into_the_base


def ball(shape):
    return lo.NBLoRA(shape, min(2, *shape), radius=0.7)


@pytest.mark.parametrize("kind", STAGES)
def test_model_equals_the_dictionary(kind):
    play_out(adapter_machine({kind: STAGES[kind]}, ball), seed=0, runs=8, steps=18)


def played(kind, steps, operations=None):
    play = Play(STAGES[kind], ball, operations)
    for name, arguments in steps:
        play.step(name, **arguments)


@pytest.mark.parametrize("number", range(len(BROKEN_OPERATIONS)))
def test_defect_of_an_operation_is_found(number):
    operations, kind, steps = BROKEN_OPERATIONS[number]
    played(kind, steps)
    with pytest.raises(Violation, match="; after adapt"):
        played(kind, steps, operations)


def test_machine_finds_a_defect():
    operations = BROKEN_OPERATIONS[5][0]
    assert operations.merge is merge_into_the_base
    machine = adapter_machine({"linear": STAGES["linear"]}, ball, operations)
    with pytest.raises(Violation, match=r"is off by .*merged=\{.*; after adapt"):
        play_out(machine, seed=0, runs=30, steps=10)
