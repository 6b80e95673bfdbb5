"""The comparison with peers in small: split files, the worker, resuming, the table."""

import json
import math

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from experiments.peers import __main__ as command
from experiments.peers import ours, report, worker
from experiments.peers.methods import BAYES, METHODS, POINT, PeerMethod
from experiments.peers.split import Split


@pytest.fixture(scope="module")
def split() -> Split:
    g = torch.Generator().manual_seed(0)
    W = 3 + torch.randn(60, 2, generator=g) @ torch.randn(2, 50, generator=g)
    cells = torch.randperm(3000, generator=g)
    parts = []
    for k in (cells[:1500], cells[1500:1700]):
        parts += [(k // 50).numpy(), (k % 50).numpy(), W.view(-1)[k].double().numpy()]
    return Split(*parts, np.eye(60), np.eye(50))


@pytest.fixture
def file(split, tmp_path):
    split.save(tmp_path / "split.npz")
    return tmp_path / "split.npz"


@pytest.fixture
def small(monkeypatch, split):
    """One method of ours, one peer that is not installed, and a split that needs no data set."""
    methods = (
        PeerMethod("peer", POINT, "cornac_mf", "no_such_package", {}, {}),
        PeerMethod("variational", POINT, "lowrank_variational", "lowrank_opt", {}, {}),
    )
    monkeypatch.setattr(command, "METHODS", methods)
    monkeypatch.setattr(report, "METHODS", methods)
    monkeypatch.setattr(command, "make_split", lambda *_: split)


def test_split_file_gives_back_the_split(split, file):
    loaded = Split.load(file)
    assert (60, 50) == loaded.shape
    np.testing.assert_array_equal(split.test_values, loaded.test_values)


def test_errors_are_those_of_clipped_predictions(split):
    predictions = split.test_values.copy()
    predictions[:8] = split.values.max() + 100
    gaps = split.values.max() - split.test_values[:8]
    expected = math.sqrt((gaps**2).sum() / 200), np.abs(gaps).sum() / 200
    assert expected == pytest.approx(split.errors(predictions))


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.ours and m.small is not None], ids=lambda m: m.name
)
def test_every_fit_of_ours_beats_the_mean(method, file, split):
    call = {"module": method.module, "function": method.function, "seed": 0}
    result = worker.measure(file, call | {"settings": method.small})
    assert result["rmse"] < 0.8 * np.std(split.test_values)
    assert {"mae", "fit_seconds", "cpu_seconds", "peak_mb", "load"} < set(result)


def test_result_in_the_ball_lies_in_it(split):
    observed = lo.Observations(split.rows, split.cols, split.values, split.shape)
    ball = ours.weighted_ball(observed, 2, 10.0)
    assert ball.contains(lo.completion.variational(observed, ball).operator)


def test_missing_peer_is_no_error(file):
    call = {"module": "no_such_package", "function": "cornac_mf", "settings": {}, "seed": 0}
    assert {"missing": "no_such_package"} == worker.measure(file, call)


def test_command_writes_record_table_and_figure(small, tmp_path, capsys):
    assert 0 == command.main(["--folds", "u1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "peers.json").read_text())
    assert {"revision", "packages"} < set(record["environment"])
    assert [True, False] == ["missing" in run for run in record["runs"]]
    assert "peer: not installed." in (tmp_path / "peers.md").read_text()
    assert (tmp_path / "peers.png").stat().st_size > 0
    assert "not installed" in capsys.readouterr().out


def test_fits_that_the_record_has_are_not_run_again(small, tmp_path, monkeypatch):
    done = {"method": "variational", "set": "u1", "seed": 0, "settings": {}, "rmse": 0.5}
    done |= {"mae": 0.4, "fit_seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 100.0}
    (tmp_path / "peers.json").write_text(json.dumps({"runs": [done]}))
    calls = []
    monkeypatch.setattr(
        command, "run", lambda m, *_: calls.append(m.name) or done | {"method": "peer"}
    )
    assert 0 == command.main(["--folds", "u1", "--out", str(tmp_path)])
    assert ["peer"] == calls


def test_failed_fit_is_reported_and_the_rest_goes_on(small, tmp_path, monkeypatch, split):
    broken = PeerMethod("broken", BAYES, "no_such_function", "lowrank_opt", {}, {})
    monkeypatch.setattr(command, "METHODS", (broken,))
    assert 0 == command.main(["--folds", "u1", "--out", str(tmp_path)])
    run = json.loads((tmp_path / "peers.json").read_text())["runs"][0]
    assert "no_such_function" in run["error"]


def test_unwritable_folder_is_refused_before_work(tmp_path, capsys):
    (tmp_path / "plain").write_text("")
    assert 1 == command.main(["--quick", "--out", str(tmp_path / "plain" / "out")])
    assert capsys.readouterr().err.startswith("error: results need a writable folder")


def test_ratio_is_to_the_fastest_peer():
    runs = [
        {"method": name, "set": "u1", "rmse": 1.0, "mae": 1.0, "fit_seconds": s}
        | {"cpu_seconds": s, "peak_mb": 1.0}
        for name, s in (("cornac MF", 2.0), ("LIBMF", 4.0), ("variational", 1.0))
    ]
    lines = report.tables(runs).splitlines()
    ratios = {line.split(" | ")[0]: line.split(" | ")[-2] for line in lines if "| 1.0000 |" in line}
    assert {
        "| cornac MF": "1.00",
        "| LIBMF": "2.00",
        "| **lowrank_opt variational**": "0.50",
    } == ratios
