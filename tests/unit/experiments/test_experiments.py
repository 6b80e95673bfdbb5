"""Records, tables, the MovieLens methods, and the skeleton of all experiments."""

import ast
import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch

import lowrank_opt as lo
from experiments import __main__ as every
from experiments import movielens as experiment
from experiments.movielens_fit import choose, fit
from experiments.movielens_methods import METHODS, residual_frames, smoothed_weights
from experiments.records import prepare_folder, write_record
from experiments.skeleton import Session, _started
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
    (tmp_path / "plain").touch()
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "record.json").stat().st_mode
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


def square(x: int, log: Path) -> int:
    with log.open("a") as file:
        file.write(f"{x} ")
    if x == 3 and not log.with_suffix(".mended").exists():
        raise KeyboardInterrupt
    return x * x


def squares(session: Session) -> None:
    calls = [partial(square, x, session.folder / "log") for x in (1, 2, 3, 4)]
    session.write("record.json", found=session.run(calls, "squares"))


def begin(folder: Path, *, resume: bool, profile: str = "smoke") -> int:
    chosen = Namespace(out=folder, profile=profile, resume=resume, quiet=True)
    return _started("squares", chosen, squares, lambda: None)


def test_resumption_runs_what_is_missing_and_nothing_twice(tmp_path, capsys):
    assert 130 == begin(tmp_path, resume=False)
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()
    (tmp_path / "log.mended").touch()
    assert 0 == begin(tmp_path, resume=True)
    record = json.loads((tmp_path / "record.json").read_text())
    assert ([1, 4, 9, 16], "smoke") == (record["found"], record["profile"])
    assert "1 2 3 3 4" == (tmp_path / "log").read_text().strip()
    # What is in the record is not kept beside it: a new start is a whole one.
    assert ["log", "log.mended", "record.json"] == sorted(x.name for x in tmp_path.iterdir())


def test_half_a_run_at_the_end_is_run_again(tmp_path):
    begin(tmp_path, resume=False)
    (journal,) = tmp_path.glob(".*.runs")
    journal.write_bytes(journal.read_bytes()[:-3])
    (tmp_path / "log.mended").touch()
    assert 0 == begin(tmp_path, resume=True)
    assert "1 2 3 2 3 4" == (tmp_path / "log").read_text().strip()


def test_runs_of_another_profile_are_not_taken(tmp_path, capsys):
    begin(tmp_path, resume=False)
    assert 1 == begin(tmp_path, resume=True, profile="cpu")
    assert "same source and profile" in capsys.readouterr().err


# What they measure needs a device, another environment, other revisions, or takes long by itself;
# tests run them in small.
APART = {
    "adapter_cost", "benchmark_cases", "benchmarks", "gpu_check", "mutants", "roofline",
}  # fmt: skip


def test_every_experiment_is_run_in_small():
    folder = Path(every.__file__).parent
    mains = {
        path.stem
        for path in folder.glob("[!_]*.py")
        if any(
            (isinstance(x, ast.FunctionDef) and x.name == "main")
            or (isinstance(x, ast.Assign) and getattr(x.targets[0], "id", "") == "main")
            for x in ast.parse(path.read_text("utf-8")).body
        )
    }
    assert mains == {*every.EXPERIMENTS, *every.LONGER} | APART
