"""The command line as a user has it: dirty files, pipes, kills, and what it says."""

import gzip
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt.cli import main
from lowrank_opt.cli.models import SavedModel
from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.model.links import LogisticMean
from tests.preloaded import run_script

USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Lines of ratings of a matrix of rank two with noise, ids that are no numbers."""
    rng = np.random.default_rng(0)
    dense = 3 + rng.normal(size=(USERS, 2)) @ rng.normal(size=(2, ITEMS))
    dense += 0.3 * rng.normal(size=dense.shape)
    cells = rng.permutation(USERS * ITEMS)[:1200]
    return [f"u{c // ITEMS:03d},ítem {c % ITEMS},{dense.flat[c]:.3f}" for c in cells]


@pytest.fixture(scope="module")
def folder(ratings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training file, a test file, and a model."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "train.csv", ratings[:1000])
    write(folder / "test.csv", ratings[1000:])
    model = str(folder / "model")
    assert 0 == main(["complete", str(folder / "train.csv"), "--out", model, "--quiet"])
    return folder


def write(path: Path, lines: list[str], header: str = "user_id,item_id,rating") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


# The command, in a process that sends itself a signal when it has left its third checkpoint: a
# signal from outside may come after the end of a short fit.
SIGNALLED = """
import os, signal, sys
from lowrank_opt.cli import main
from lowrank_opt.completion import Checkpoint

offer, offers = Checkpoint.offer, []

def offer_and_signal(self, *arguments):
    offer(self, *arguments)
    offers.append(self)
    if len(offers) == 6:
        os.kill(os.getpid(), int(sys.argv[1]))

Checkpoint.offer = offer_and_signal
# A shell that runs the tests in the background has its children ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[2:]))
"""


def signalled(
    number: signal.Signals, folder: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own that is interrupted."""
    script = folder / "signalled.py"
    script.write_text(SIGNALLED)
    return run_script(script, int(number), *arguments, folder=folder)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lowrank_opt.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(lo.__file__).parents[1]), "PYTHONUTF8": "1"},
    )


def test_ids_reach_the_model(folder: Path):
    result = CompletionResult.load(folder / "model")
    assert {f"u{k:03d}" for k in range(USERS)} == set(result.row_ids)
    assert {f"ítem {k}" for k in range(ITEMS)} == set(result.col_ids)


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert 0 == main(["evaluate", str(folder / "model"), str(folder / "test.csv")])
    lines = dict(line.split(",") for line in capsys.readouterr().out.splitlines())
    assert ("value", "200", "1") == (lines["metric"], lines["lines"], lines["coverage"])
    result = CompletionResult.load(folder / "model")
    rows = [line.split(",") for line in (folder / "test.csv").read_text().splitlines()[1:]]
    i = [result.row_ids.index(row[0]) for row in rows]
    j = [result.col_ids.index(row[1]) for row in rows]
    errors = result.predict(i, j).double() - torch.tensor([float(row[2]) for row in rows])
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(lines["rmse"]), rel=1e-5)
    assert float(errors.abs().mean()) == pytest.approx(float(lines["mae"]), rel=1e-5)
    # The noise has deviation 0.3, the values 1.5.
    assert float(lines["rmse"]) < 0.45


def test_evaluate_fails_its_criterion(folder: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["evaluate", str(folder / "model"), str(folder / "test.csv"), "--max-rmse"]
    assert (1, 0) == (main([*asked, "0.1"]), main([*asked, "9"]))
    assert "more than 0.1" in capsys.readouterr().err


def test_predict_a_pipe_with_unknown_ids(folder: Path, tmp_path: Path):
    pairs = gzip.compress("item,user\nítem 3,u001\nnew,u001\nítem 3,new\nnew,new\n".encode())
    fifo, out = tmp_path / "fifo", tmp_path / "out.csv"
    os.mkfifo(fifo)
    asked = (folder / "model", fifo, "--user", "user", "--item", "item", "--out", out)
    process = start("predict", *asked)
    fifo.write_bytes(pairs)
    _, err = process.communicate(timeout=120)
    result = CompletionResult.load(folder / "model")
    i, j, bias = result.row_ids.index("u001"), result.col_ids.index("ítem 3"), result.bias
    a, b = float(bias.rows[i]), float(bias.cols[j])
    expected = [float(result.predict(i, j)), bias.mean + a, bias.mean + b, bias.mean]
    lines = [line.split(",") for line in out.read_text(encoding="utf-8").splitlines()]
    assert ["user", "item", "prediction"] == lines[0]
    assert [["u001", "ítem 3"], ["u001", "new"], ["new", "ítem 3"], ["new", "new"]] == [
        line[:2] for line in lines[1:]
    ]
    np.testing.assert_allclose([float(line[2]) for line in lines[1:]], expected, rtol=1e-5)
    assert "reading" == err.splitlines()[0][:7]
    assert (0, "warning: 3 of 4 pairs") == (process.returncode, err.splitlines()[1][:21])


def test_predictions_go_through_the_link(folder: Path, tmp_path: Path):
    result = CompletionResult.load(folder / "model")
    replace(result, link=LogisticMean(0.0, 1.0)).save(tmp_path)
    model = SavedModel(str(tmp_path))
    expected = torch.sigmoid(result.predict([3, 4], [5, 6]).double())
    found = model.predict(np.array([3, 4]), np.array([5, 6]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_recommend_leaves_out_what_was_seen(folder: Path, capsys: pytest.CaptureFixture[str]):
    train = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()[1:]]
    seen = {item for user, item, _ in train if user == "u007"}
    asked = ["recommend", str(folder / "model"), "--user", "u007", "-k", str(ITEMS)]
    assert 0 == main([*asked, "--exclude-seen", str(folder / "train.csv")])
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()][1:]
    assert {f"ítem {k}" for k in range(ITEMS)} - seen == {item for _, item, _ in lines}
    scores = [float(score) for *_, score in lines]
    assert scores == sorted(scores, reverse=True)
    assert 0 == main(asked)
    assert ITEMS + 1 == len(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("residuals", [False, True])
def test_plot(folder: Path, tmp_path: Path, residuals: bool):
    out, test = tmp_path / "figure.png", str(folder / "test.csv")
    asked = ["plot", str(folder / "model"), "--out", str(out)]
    assert 0 == main([*asked, *(["--residuals", test] if residuals else [])])
    assert b"\x89PNG" == out.read_bytes()[:4]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plot", "{m}", "--out", "x.foo"], "--out must end in one of"),
        (["plot", "{m}", "--out", "no/such/folder/x.png"], "the figure must be writable"),
        (["plot", "nothing", "--out", "x.png"], "a result is a folder with result.json"),
        (["predict", "{m}", "{t}", "--clip", "2", "1"], "--clip must be a smaller and a larger"),
        (["predict", "{m}", "{t}", "--out", "no/such/x.csv"], "the output must be writable"),
        (["predict", "{m}", "{t}", "--item", "rating", "--user", "x"], "must be one of"),
        (["recommend", "{m}", "--user", "nobody"], "that the model knows; got 'nobody'"),
        (["recommend", "{m}", "--user", "u001", "-k", "0"], "-k must be at least 1; got 0"),
        (["evaluate", "{m}", "nothing.csv"], "must be readable; got 'nothing.csv'"),
    ],
)
def test_wrong_use_of_a_model(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
):
    paths = {"m": folder / "model", "t": folder / "test.csv"}
    assert 2 == main([part.format(**paths) for part in command])
    err = capsys.readouterr().err
    assert message in err
    assert 1 == err.count("\n")


DIRTY = {
    "a text column": (["a,b,good"], "line 3: 'good' is not a finite number"),
    "a cut line": (["a,b"], "line 3: 2 fields instead of 3"),
    "a pair twice": (["u000,i,1", "u000,i,2"], "('u000', 'i') on lines 3 and 4"),
    "an empty id": ([",b,1"], "line 3: nothing in column 1"),
}


@pytest.mark.parametrize("case", DIRTY)
def test_dirty_file_is_one_line_of_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    lines, message = DIRTY[case]
    path = write(tmp_path / "r.csv", ["u,v,1", *lines])
    assert 2 == main(["complete", str(path), "--out", str(tmp_path / "m")])
    err = capsys.readouterr().err
    assert message in err
    assert ("error: ", 1) == (err[:7], err.count("\n"))
    assert ["r.csv"] == [p.name for p in tmp_path.iterdir()]


def test_dirty_lines_are_left_out_aloud(
    tmp_path: Path, ratings: list[str], capsys: pytest.CaptureFixture[str]
):
    lines = [*ratings[:500], "cut,off", *ratings[500:600], ratings[0], "u,v,text"]
    path = write(tmp_path / "r.csv", lines)
    asked = ["complete", str(path), "--out", str(tmp_path / "m"), "--max-bad-lines", "2"]
    assert 0 == main([*asked, "--duplicates", "mean"])
    err = capsys.readouterr().err
    assert "2 malformed lines left out: line 502: 2 fields instead of 3" in err
    assert "line 604: 'text' is not a finite number" in err
    assert "1 lines repeat a pair: mean taken" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solver", "gradient"], "needs --radius"),
        (["--solver", "magic"], "solver must be 'lbfgs', 'frank_wolfe'"),
        (["--rank", "0"], "--rank must be at least 1; got 0"),
        (["--resume", "--checkpoint-every", "0"], "--resume needs checkpoints; got"),
        (["--radius", "-1"], "radius must be positive"),
        (["--validation", "1.5"], "a split needs a fraction in (0, 1)"),
        (["--user", "who"], "must be one of ['user_id', 'item_id', 'rating']; got 'who'"),
    ],
)
def test_wrong_options(
    tmp_path: Path,
    ratings: list[str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
):
    path = write(tmp_path / "r.csv", ratings[:100])
    assert 2 == main(["complete", str(path), "--out", str(tmp_path / "m"), "--quiet", *options])
    err = capsys.readouterr().err
    assert message in err
    assert 1 == err.count("\n")


def test_not_converged_is_status_one(tmp_path: Path, ratings: list[str], capsys):
    path = write(tmp_path / "r.csv", ratings)
    asked = ["complete", str(path), "--out", str(tmp_path / "m"), "--radius", "60", "--quiet"]
    assert 1 == main([*asked, "--max-iterations", "12"])
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err
    assert 0 == main([*asked, "--resume"])
    assert ["result.json", "result.safetensors"] == sorted(os.listdir(tmp_path / "m"))


def numbers(model: Path) -> dict[str, object]:
    result = CompletionResult.load(model)
    columns = result.history.columns()
    del columns["seconds"]
    tensors = (*result.operator, result.bias.rows, result.bias.cols)
    return columns | {"tensors": [x.tolist() for x in tensors], "status": result.status}


SOLVERS = {
    "variational": ["--tolerance", "0", "--max-iterations", "60"],
    "gradient": ["--radius", "70", "--tolerance", "0", "--max-iterations", "60"],
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_killed_and_resumed_is_the_same(
    tmp_path: Path, ratings: list[str], capsys: pytest.CaptureFixture[str], solver: str
):
    path = write(tmp_path / "r.csv", ratings)
    asked = ["complete", str(path), "--validation", "0.1", "--checkpoint-every", "2", "--quiet"]
    asked += ["--solver", solver, *SOLVERS[solver], "--out"]
    whole = main([*asked, str(tmp_path / "whole")])
    killed = signalled(signal.SIGKILL, tmp_path, *asked, tmp_path / "killed")
    assert -signal.SIGKILL == killed.returncode, killed.stderr
    assert (tmp_path / "killed" / "checkpoint" / "checkpoint.json").exists()
    assert not (tmp_path / "killed" / "result.json").exists()
    capsys.readouterr()
    assert whole == main([*asked, str(tmp_path / "killed"), "--resume"])
    assert "going on from" in capsys.readouterr().err
    np.testing.assert_equal(numbers(tmp_path / "killed"), numbers(tmp_path / "whole"))


def test_resume_with_other_data_is_refused(tmp_path: Path, ratings: list[str], capsys):
    asked = ["--out", str(tmp_path / "m"), "--tolerance", "0", "--max-iterations", "3", "--quiet"]
    assert 1 == main(["complete", str(write(tmp_path / "a.csv", ratings)), *asked])
    other = str(write(tmp_path / "b.csv", ratings[1:]))
    assert 2 == main(["complete", other, *asked, "--resume"])
    assert "the settings it began with; got data=" in capsys.readouterr().err


def test_interrupt_saves_the_best(tmp_path: Path, ratings: list[str]):
    path = write(tmp_path / "r.csv", ratings)
    never = ["--tolerance", "0", "--max-iterations", "1000000", "--checkpoint-every", "1"]
    done = signalled(signal.SIGINT, tmp_path, "complete", path, "--out", tmp_path / "m", *never)
    assert 130 == done.returncode
    assert "The best model was saved." in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(map(math.isnan, CompletionResult.load(tmp_path / "m").history.objective))
