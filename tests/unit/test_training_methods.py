"""The comparison of training methods in small: every method trains and keeps its bound."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from experiments import training_methods, training_vit
from experiments.training_methods import METHODS, Outcome, best_rate, table, train

NAMES = [method.name for method in METHODS]


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    network = training_vit.TinyViT().eval()
    monkeypatch.setattr(training_vit, "pretrained", lambda: network)
    monkeypatch.setattr(training_methods, "STEPS", 6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("index", range(len(METHODS)), ids=NAMES)
def test_method_trains_and_keeps_its_bound(index):
    outcome = train(index, 1e-2, 0, test=False)
    assert outcome.holds
    assert math.isfinite(outcome.training_loss)
    assert math.isnan(outcome.test_accuracy)


@pytest.mark.usefixtures("small")
def test_run_is_repeatable():
    runs = [asdict(train(0, 1e-2, 3, test=True)) for _ in range(2)]
    for run in runs:
        del run["cpu_seconds"]
    assert runs[0] == runs[1]


def test_parts_of_the_task_are_disjoint():
    task = training_vit.turned(0)
    assert [400, 300, 1097] == [len(part.labels) for part in task]
    rows = torch.cat([part.images.flatten(1) for part in task])
    images = training_vit.digits()[0].rot90(1, dims=(2, 3)).flatten(1)
    assert torch.equal(rows.sort(0).values, images.sort(0).values)


def outcome(lr, loss, seed=0):
    return Outcome(NAMES[0], lr, seed, 0.5, loss, 0.8, 0.75, True, 1.0)


def test_rate_with_the_least_validation_loss_is_taken():
    runs = [outcome(0.1, math.nan), outcome(0.1, 0.1, 1), outcome(0.01, 0.3), outcome(0.01, 0.5, 1)]
    assert 0.01 == best_rate(runs)


def test_table_has_one_line_for_each_method():
    header, rows = table([outcome(0.01, 0.3), outcome(0.01, 0.5, 1)])
    assert [NAMES[0]] == [row[0] for row in rows]
    assert len(header) == len(rows[0])


def test_quick_run_writes_its_record(tmp_path, monkeypatch, capsys):
    class Here:
        def __init__(self, prepare):
            assert callable(prepare)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def run(self, calls, description):
            assert description in ("learning rates", "test")
            return [outcome(call.args[1], 0.3) for call in calls]

    monkeypatch.setattr(training_methods, "Workers", Here)
    monkeypatch.setattr(training_methods, "METHODS", METHODS[:1])
    assert 0 == training_methods.main(["--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "training-methods.json").read_text("utf-8"))
    assert {"environment", "settings", "tuning", "final", "table"} == set(record)
    assert NAMES[0] in capsys.readouterr().out
