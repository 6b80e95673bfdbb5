"""Records, tables and the MovieLens command: small parts, and one short run of the whole."""

import json
from pathlib import Path

import pytest
import torch

import lowrank_opt as lo
from experiments import movielens as experiment
from experiments.movielens_fit import choose, fit
from experiments.movielens_methods import METHODS, residual_frames, smoothed_weights
from experiments.records import prepare_folder, write_record
from experiments.tables import markdown_table, mean_and_spread, text_table
from lowrank_opt.errors import DataError


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A path below a plain file: no folder can be made there, whoever asks."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


@pytest.fixture(scope="module")
def small() -> lo.Observations:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(100 * 90, generator=generator)[:3000]
    values = 3 + torch.randn(3000, generator=generator)
    return lo.Observations(cells // 90, cells % 90, values, (100, 90))


def test_unwritable_results_are_refused_before_work(blocked):
    with pytest.raises(DataError, match=r"writable folder; got .*choose another one with --out"):
        prepare_folder(blocked)


def test_command_reports_unwritable_results(blocked, capsys):
    assert 1 == experiment.main(["--out", str(blocked)])
    assert capsys.readouterr().err.startswith("error: results need a writable folder")


def test_record_is_whole_json(tmp_path):
    write_record(tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert [tmp_path / "record.json"] == list(tmp_path.iterdir())
    assert torch.__version__ == record["environment"]["packages"]["torch"]


def test_record_that_cannot_be_written(blocked):
    with pytest.raises(DataError, match=r"record must be written"):
        write_record(blocked / "record.json")


def test_tables():
    rows = [["a", "1.0"], ["bb", "10.0"]]
    assert ["x   value", "--  -----", "a     1.0", "bb   10.0"] == text_table(
        ["x", "value"], rows
    ).splitlines()
    assert "| a | 1.0 |" == markdown_table(["x", "value"], rows).splitlines()[2]
    assert "2.00 ± 1.00" == mean_and_spread([1.0, 2.0, 3.0], digits=2)


@pytest.mark.parametrize("method", METHODS, ids=[m.name for m in METHODS])
def test_every_method_fits_and_keeps_its_bound(method, small):
    setting = {k: v / 40 if k == "radius" else v for k, v in method.grid[0].items()}
    fitted = fit(method, setting, small, seed=0)
    predictions = fitted.predict(torch.arange(30), torch.zeros(30, dtype=torch.int64))
    assert bool(torch.isfinite(predictions).all())
    assert fitted.parameterization is None or fitted.parameterization.certify().holds


def test_settings_are_chosen_without_the_test_entries(small):
    biases = METHODS[1]
    assert choose(biases, small, seed=0) in biases.grid


def test_residual_frames_are_orthonormal(small):
    U, V = residual_frames(small, 5)
    torch.testing.assert_close(U.mT @ U, torch.eye(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(V.mT @ V, torch.eye(5), rtol=0, atol=1e-5)


def test_weights_fall_with_the_count(small):
    weights = smoothed_weights(torch.tensor([0, 1, 16]), small)
    assert [1.0, 1.0, 0.5] == pytest.approx((weights / weights[1]).tolist())
