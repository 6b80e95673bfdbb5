"""The experiment on intruder dimensions in small: runs, changes, and what is made of them."""

import math
from dataclasses import replace

import pytest
import torch

import lowrank_opt as lo
from experiments import intruders, intruders_runs
from experiments.intruders import change_rows, correlations, draw, sweep_rows
from experiments.intruders_runs import SETTINGS, Change, Outcome, Setting, changes, train
from experiments.training_vit import loss_and_accuracy, turned
from lowrank_opt.merging import SingularBasis

KINDS = [next(i for i, s in enumerate(SETTINGS) if s.method == m) for m in intruders.COLOURS]


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    network = intruders_runs.WideViT().eval()
    names = [n for n, w in network.named_parameters() if w.ndim == 2 and min(w.shape) >= 64][:2]
    bases = {n: SingularBasis.of(network.get_parameter(n)) for n in names}
    monkeypatch.setattr(intruders_runs, "pretrained", lambda: network)
    monkeypatch.setattr(intruders_runs, "bases", lambda: bases)
    return network


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("index", KINDS)
def test_every_kind_of_run_is_measured(index):
    outcome = train(index, 0, 2)
    assert (20, SETTINGS[index]) == (outcome.looked_at, outcome.setting)
    assert outcome.frobenius > 0
    assert math.isfinite(outcome.upright_loss)


def test_changes_start_from_the_run_and_share_the_norm(small):
    generator = torch.Generator().manual_seed(0)
    spikes = {
        name: lo.LowRankOperator(
            torch.randn(b.shape[0], 1, generator=generator),
            torch.ones(1),
            torch.randn(b.shape[1], 1, generator=generator),
        )
        for name, b in intruders_runs.bases().items()
    }
    report = intruders_runs.quiet_report(spikes)
    assert report.count >= 2
    found = changes(spikes, report, turned(0).validation)
    assert ["unchanged"] + ["intruder", "same norm", "neighbour"] * 3 == [x.kind for x in found]
    for k in (1, 4, 7):
        assert found[k].frobenius == pytest.approx(found[k + 1].frobenius, rel=1e-5)
    start = loss_and_accuracy(small, turned(0).validation)[0]
    assert found[0].turned_loss != pytest.approx(start)
    assert () == changes({k: 0.0 * x for k, x in spikes.items()}, _none(spikes), turned(0).test)


def _none(spikes):
    return intruders_runs.quiet_report({k: 0.0 * x for k, x in spikes.items()})


def outcome(loss, count, size, method="LoRA"):
    first = Change("unchanged", 1.0, loss, 0.2, 0.9, size)
    return Outcome(
        setting=Setting(method, 4, 0, 0.1),
        seed=0,
        turned_accuracy=0.9,
        turned_loss=0.3,
        upright_loss=loss,
        upright_accuracy=0.4,
        intruders=count,
        by_span=0,
        looked_at=80,
        undetermined=1,
        energy_share=0.1,
        relative_size=0.5,
        frobenius=size,
        changes=(first, Change("intruder", 0.7, loss / 2, 0.4, 0.8, size)) if count else (),
    )


RUNS = [outcome(1.0, 0, 3.0), outcome(2.0, 4, 1.0), outcome(3.0, 6, 2.0)]


def test_tables_have_means_and_ratios():
    (row,) = sweep_rows(RUNS)
    assert ["LoRA, rank 4", "0.1", "0.900 ± 0.000", "2.00 ± 1.00", "3.3 ± 3.1"] == row[:5]
    assert ["x 1.000", "x 0.500"] == [row[2] for row in change_rows(RUNS)]
    assert [] == change_rows(RUNS[:1])


def test_correlations_are_spearmans(tmp_path):
    diverged = replace(RUNS[0], turned_accuracy=0.1, upright_loss=9.0)
    found = correlations([*RUNS, diverged])["LoRA, learned"]
    assert (3, 1.0, -0.5, None) == tuple(
        found[key] for key in ("runs", "intruders", "Frobenius norm", "by span")
    )
    assert found["intruders, given the norm"] == pytest.approx(1.0)
    assert found["Frobenius norm, given the intruders"] is None
    draw(RUNS, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
