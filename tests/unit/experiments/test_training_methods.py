"""The comparison of training methods in small: every method trains and keeps its bound."""

import math
from dataclasses import asdict

import pytest
import torch

from experiments import training_vit
from experiments.training_factors import Fit, factor_table, fit, problem
from experiments.training_methods import METHODS, train
from experiments.training_report import (
    Outcome,
    best_rate,
    differences,
    mean_and_error,
    scale_table,
    table,
)

NAMES = [method.name for method in METHODS]


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    network = training_vit.TinyViT().eval()
    monkeypatch.setattr(training_vit, "pretrained", lambda: network)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("index", range(len(METHODS)), ids=NAMES)
def test_method_trains_and_keeps_its_bound(index):
    outcome = train(index, 1e-2, 0, 6)
    assert outcome.holds
    assert math.isfinite(outcome.training_loss)
    assert math.isnan(outcome.test_accuracy)


@pytest.mark.usefixtures("small")
def test_run_is_repeatable():
    runs = [asdict(train(0, 1e-2, 3, 6, test=True)) for _ in range(2)]
    for run in runs:
        del run["cpu_ms"]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("common_test", [False, True])
def test_parts_of_the_task_are_disjoint(common_test):
    task = training_vit.turned(1, common_test=common_test)
    assert [400, 300, 1097] == [len(part.labels) for part in task]
    rows = torch.cat([part.images.flatten(1) for part in task])
    images = training_vit.digits()[0].rot90(1, dims=(2, 3)).flatten(1)
    assert torch.equal(rows.sort(0).values, images.sort(0).values)


def test_common_test_images_do_not_depend_on_the_seed():
    first, second = (training_vit.turned(seed, common_test=True) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.training.images, second.training.images)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "same"), [("LoRARite", True), ("Factored, AdamW (LoRA)", False)])
def test_scale_of_the_start_matters_unless_steps_are_invariant(name, same):
    index = NAMES.index(name)
    losses = [train(index, 1e-2, 0, 6, scale=c).training_loss for c in (1.0, 16.0)]
    assert same == math.isclose(*losses, rel_tol=1e-5)


def outcome(lr, loss, seed=0, *, method=NAMES[0], scale=1.0):
    return Outcome(method, lr, seed, scale, 0.5, loss, 0.8, 0.75, True, 1.0)


def test_rate_with_the_least_validation_loss_is_taken():
    runs = [outcome(0.1, math.nan), outcome(0.1, 0.1, 1), outcome(0.01, 0.3), outcome(0.01, 0.5, 1)]
    assert 0.01 == best_rate(runs)


def test_differences_are_paired_by_seed():
    runs = [outcome(0.1, 1.0, 0), outcome(0.1, 9.0, 1), outcome(0.1, 7.0, 2)]
    runs += [outcome(0.1, 8.0, 1, method="b"), outcome(0.1, 3.0, 0, method="b")]
    assert [2.0, -1.0] == differences(runs, "b", NAMES[0], "validation_loss")


def test_standard_error_is_that_of_the_mean():
    mean, error = mean_and_error([0.0, 2.0, 4.0, 6.0])
    assert 3.0 == mean
    assert math.isclose(math.sqrt(20 / 3) / 2, error)


def test_table_has_one_line_for_each_method():
    header, rows = table([outcome(0.01, 0.3), outcome(0.01, 0.5, 1)], NAMES)
    assert [NAMES[0]] == [row[0] for row in rows]
    assert len(header) == len(rows[0])


def test_scale_table_has_one_column_for_each_scale():
    runs = [outcome(0.01, 0.5), outcome(0.01, 9.0, 1), outcome(0.01, 0.75, scale=10.0)]
    assert [[NAMES[0], "0.01", "0.500", "0.750"]] == scale_table(runs, NAMES, [0])[1]


@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_starts_of_the_factorisation_are_one_matrix_in_two_gauges(condition):
    (Y, first), (same, second) = (problem(condition, c) for c in (1.0, 100.0))
    assert torch.equal(Y, same)
    torch.testing.assert_close(first.to_dense(), second.to_dense())
    sigma = torch.linalg.svdvals(Y)[:5]
    assert math.isclose(condition, sigma[0] / sigma[-1], rel_tol=1e-9)


def test_scaled_gradient_descent_factorises_from_any_gauge():
    errors = [fit("ScaledGD", 0.3, 100.0, c).error for c in (1.0, 100.0)]
    assert max(errors) < 1e-10


def test_factor_table_names_the_best_rate():
    fits = [Fit("Adam", 0.1, k, c, 1e-3) for k in (1.0, 100.0) for c in (1.0, 10.0, 100.0)]
    fits.append(Fit("Adam", 0.3, 1.0, 1.0, math.inf))
    header, rows = factor_table(fits)
    assert [["Adam", *["1e-03 (0.1)"] * 6]] == rows
    assert len(header) == len(rows[0])
