"""In every state that a sequence of operations reaches, PEFT computes what is exported to it."""

import copy
import tempfile
import warnings

import peft
import pytest
import torch
from hypothesis.stateful import invariant

import lowrank_opt as lo
from lowrank_opt.errors import LowRankError
from lowrank_opt.nn import export_peft
from lowrank_opt.testing.laws.adapter_machine import adapter_machine, play_out
from lowrank_opt.testing.search.verdict import expect
from tests.property.adapter_stages import STAGES

PLAYED = {
    "linear": lambda shape: lo.NBLoRA(shape, min(2, *shape), radius=0.7),
    "normalised": lambda shape: lo.Factored(shape, min(2, *shape), scaling=0.5),
    "normalised head": lambda shape: lo.Factored(shape, min(2, *shape), scaling=0.5),
}


def through_peft(play, *, name, seen):
    """Export an adapter, whatever is active, and let PEFT read it into the base model."""
    with tempfile.TemporaryDirectory() as folder:
        before = play._call(play.model.eval()).detach()
        try:
            export_peft(play.model, folder, name=name)
        except LowRankError:
            return
        finally:
            same = torch.equal(before, play._call(play.model.eval()).detach())
            expect(same, "an export has changed the model")
        page, base = play.written(name), copy.deepcopy(play.original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    whole = copy.deepcopy(play.book)
    whole.base, whole.pages = copy.deepcopy(play.original), {name: page}
    truth = whole.output(play.stage.inputs, {name: 1.0})
    tolerance = max(play.tolerance, 1e-6) * (1 + float(truth.abs().max()))
    error = float((theirs(*play.stage.inputs).detach() - truth).abs().max())
    expect(error <= tolerance, f"PEFT is off by {error:.2e}")
    seen.append(name)


@pytest.mark.parametrize("kind", PLAYED)
def test_peft_computes_what_is_exported_in_every_state(kind):
    seen = []

    class PeftMachine(adapter_machine({kind: STAGES[kind]}, PLAYED[kind])):
        @invariant()
        def exported(self):
            for name in sorted(self.play.book.pages) if hasattr(self, "play") else ():
                through_peft(self.play, name=name, seen=seen)

    play_out(PeftMachine, seed=0, runs=3, steps=12)
    assert len(seen) >= 10
