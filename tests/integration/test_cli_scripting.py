"""The command in scripts: forms of input and output, statuses, locks, streams."""

import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lowrank_opt as lo
import lowrank_opt.cli as cli
from lowrank_opt import files
from lowrank_opt.cli import main
from lowrank_opt.completion import CompletionResult
from lowrank_opt.errors import DataError
from lowrank_opt.kernels import use_backend
from lowrank_opt.observations import ratings

USERS, ITEMS = 30, 20


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    dense = 3 + np.outer(rng.normal(size=USERS), rng.normal(size=ITEMS))
    cells = rng.permutation(USERS * ITEMS)[:400]
    return pd.DataFrame(
        {
            "user": [f"ü{c // ITEMS:03d}" for c in cells],
            "item": [f"{c % ITEMS:03d}" for c in cells],
            "rating": dense.flat[cells].round(2),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    table().to_csv(folder / "r.csv", index=False)
    assert 0 == main(["complete", str(folder / "r.csv"), "--out", str(folder / "m"), "--quiet"])
    return folder


def fitted(path: Path, folder: Path, *options: str) -> CompletionResult:
    out = folder / "model"
    assert 0 == main(["complete", str(path), "--out", str(out), "--quiet", *options])
    return CompletionResult.load(out)


FORMS = {
    "plain": lambda x, p: x.to_csv(p, index=False),
    "no header": lambda x, p: x.to_csv(p, index=False, header=False),
    "index": lambda x, p: x.to_csv(p),
    "other order": lambda x, p: x[["rating", "item", "user"]].to_csv(p, index=False),
    "time": lambda x, p: x.assign(timestamp=978300760).to_csv(p, index=False),
    "time, no header": lambda x, p: x.assign(t=978300760).to_csv(p, index=False, header=False),
    "parquet": lambda x, p: x.to_parquet(p),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_model(folder: Path, tmp_path: Path, form: str):
    path = tmp_path / ("r.parquet" if form == "parquet" else "r.csv")
    FORMS[form](table(), path)
    expected, found = CompletionResult.load(folder / "m"), fitted(path, tmp_path)
    assert (expected.row_ids, expected.col_ids) == (found.row_ids, found.col_ids)
    np.testing.assert_array_equal(expected.to_dense(), found.to_dense())


WEIGHED = {
    "csv": (lambda x, p: x.to_csv(p, index=False), "trust"),
    "no header": (lambda x, p: x.to_csv(p, index=False, header=False), "3"),
    "parquet": (lambda x, p: x.to_parquet(p), "trust"),
}


@pytest.mark.parametrize("form", WEIGHED)
def test_weights_are_read_said_and_used(tmp_path: Path, form: str, capsys: object):
    write, column = WEIGHED[form]
    path = tmp_path / ("r.parquet" if form == "parquet" else "r.csv")
    frame = table()
    frame.insert(2, "trust", np.arange(len(frame)) % 3 + 1.0)
    write(frame, path)
    found = fitted(path, tmp_path, "--weight", column)
    data = ratings.read_ratings(path, weight=column).observations
    assert frame["trust"].tolist() == data.weights.tolist()
    assert frame["rating"].astype(np.float32).tolist() == data.values.tolist()
    generator = torch.Generator().manual_seed(0)
    with use_backend("torch"):
        expected = lo.complete(data, 12, solver="variational", generator=generator)
    np.testing.assert_array_equal(expected.to_dense(), found.to_dense())
    main(["complete", str(path), "--out", str(tmp_path / "m"), "--weight", column])
    line = capsys.readouterr().err
    assert f"weights {column}" in line
    assert "with weights from 1 to 3" in line
    assert 2 == main(["complete", str(path), "--out", str(tmp_path / "m"), "--weight", "rating"])


@pytest.mark.parametrize("form", ["index, no header", "unknown names"])
def test_columns_are_never_guessed(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]):
    frame = table()
    if form == "unknown names":
        frame.assign(d=1).set_axis(list("abcd"), axis=1).to_csv(tmp_path / "r.csv", index=False)
    else:
        frame.to_csv(tmp_path / "r.csv", header=False)
    assert 2 == main(["complete", str(tmp_path / "r.csv"), "--out", str(tmp_path / "m")])
    assert "it must be known which columns hold rows" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_what_was_read_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["complete", str(folder / "r.csv"), "--out", str(tmp_path / "m")])
    line = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("read "))
    values = table()["rating"]
    rule = "rows user, columns item, values rating (by name); names in the first line"
    assert f"{rule}; 400 ratings" in line
    assert f"from {values.min():g} to {values.max():g}, 30 users x 20 items, 0 repeated" in line
    assert 0 == main(["predict", str(folder / "m"), str(folder / "r.csv"), "--quiet"])
    assert "" == capsys.readouterr().err


def test_pairs_without_a_header_keep_the_first_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "pairs.csv"
    table()[["user", "item"]].to_csv(path, index=False, header=False)
    assert 0 == main(["predict", str(folder / "m"), str(path)])
    assert 401 == len(capsys.readouterr().out.splitlines())
    path.write_text("nobody,nothing\nno one,naught\n")
    assert 2 == main(["predict", str(folder / "m"), str(path)])
    assert "--header or --no-header" in capsys.readouterr().err
    assert 0 == main(["predict", str(folder / "m"), str(path), "--no-header"])
    assert 3 == len(capsys.readouterr().out.splitlines())


def test_seen_pairs_without_a_header(folder: Path, tmp_path: Path, capsys: object):
    seen = tmp_path / "seen.csv"
    items = sorted(set(table()["item"]))
    seen.write_text("".join(f"ü001,{x}\n" for x in items[:-1]))
    asked = ["recommend", str(folder / "m"), "--user", "ü001", "--exclude-seen", str(seen)]
    assert 0 == main(asked)
    lines = capsys.readouterr().out.splitlines()
    assert [items[-1]] == [line.split(",")[1] for line in lines[1:]]


def test_json_csv_and_parquet_say_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = ["recommend", str(folder / "m"), "--all", "-k", "3"]
    assert 0 == main([*asked, "--out", str(tmp_path / "r.parquet")])
    assert 0 == main([*asked, "--json"])
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 0 == main([*asked, "--out", "-"])
    text = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype={"item": str})
    parquet = pd.read_parquet(tmp_path / "r.parquet")
    assert USERS * 3 == len(parquet)
    pd.testing.assert_frame_equal(parquet, pd.DataFrame(objects))
    pd.testing.assert_frame_equal(parquet, text, rtol=1e-5)
    assert 2 == main([*asked, "--json", "--out", str(tmp_path / "r.parquet")])


def test_json_of_the_other_commands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = str(folder / "r.csv")
    assert 0 == main(["complete", data, "--out", str(tmp_path / "m"), "--json", "--quiet"])
    said = json.loads(capsys.readouterr().out)
    assert ("CONVERGED", 400, USERS, ITEMS) == tuple(
        said[x] for x in ("status", "ratings", "users", "items")
    )
    assert 0 == main(["evaluate", str(folder / "m"), data, "--json", "--quiet"])
    assert 400 == json.loads(capsys.readouterr().out)["lines"]
    assert 0 == main(["predict", str(folder / "m"), data, "--json", "--quiet"])
    lines = capsys.readouterr().out.splitlines()
    assert {"user", "item", "prediction"} == set(json.loads(lines[-1]))


def test_regular_files_keep_mode_and_links(folder: Path, tmp_path: Path):
    target, link = tmp_path / "deep.csv", tmp_path / "link.csv"
    target.write_text("old")
    target.chmod(0o604)
    link.symlink_to(target)
    asked = ["recommend", str(folder / "m"), "--user", "ü001", "--out"]
    assert 0 == main([*asked, str(link)])
    assert link.is_symlink()
    assert "user,item" in target.read_text()[:10]
    assert 0o604 == stat.S_IMODE(target.stat().st_mode)
    assert {"deep.csv", "link.csv"} == {x.name for x in tmp_path.iterdir()}
    assert 2 == main([*asked, str(tmp_path)])


def test_devices_and_pipes_are_written_to(folder: Path, tmp_path: Path):
    before = os.stat(os.devnull)
    asked = ["recommend", str(folder / "m"), "--user", "ü001", "-k", "2", "--out"]
    assert 0 == main([*asked, os.devnull])
    assert (stat.S_ISCHR(before.st_mode), before.st_rdev) == (
        stat.S_ISCHR(os.stat(os.devnull).st_mode),
        os.stat(os.devnull).st_rdev,
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_text()))
    reader.start()
    assert 0 == main([*asked, str(fifo)])
    reader.join(30)
    assert 3 == len(found[0].splitlines())
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_an_output_that_fails_leaves_the_old_one(folder: Path, tmp_path: Path):
    out, pairs = tmp_path / "out.csv", tmp_path / "pairs.csv"
    out.write_text("old")
    pairs.write_text("user,item\nü001,001\nü001\n")
    assert 2 == main(["predict", str(folder / "m"), str(pairs), "--out", str(out)])
    assert "old" == out.read_text()
    assert {"out.csv", "pairs.csv"} == {x.name for x in tmp_path.iterdir()}


def test_a_model_has_one_writer(folder: Path, tmp_path: Path, capsys: object):
    held = tmp_path / "m"
    held.mkdir()
    script = (
        "import sys; from pathlib import Path; from lowrank_opt.locks import locked\n"
        f"with locked(Path({str(held)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert "held\n" == other.stdout.readline()
        assert 2 == main(["complete", str(folder / "r.csv"), "--out", str(held)])
        assert "another one holds" in capsys.readouterr().err
        with (
            pytest.raises(DataError, match="one process at a time"),
            files.locked(held, wait=False),
        ):
            pass
        other.stdin.close()
        other.wait(30)
    assert 0 == main(["complete", str(folder / "r.csv"), "--out", str(held), "--quiet"])
    with files.locked(held), files.locked(held, wait=False):
        CompletionResult.load(held).save(held)


class Full(io.TextIOWrapper):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_statuses_are_distinct(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked = ["recommend", str(folder / "m"), "--user", "ü001"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(io.BytesIO()))
        assert 2 == main(asked)
    assert "error: the output must be writable" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert 2 == main(asked)
    assert "standard output that is closed" in capsys.readouterr().err
    monkeypatch.setattr("lowrank_opt.cli.commands.recommend._best", lambda *_: 1 / 0)
    assert 70 == main(asked)
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "a fault of lowrank-opt" in err
    with pytest.raises(SystemExit) as stopped:
        main(["recommend"])
    assert 2 == stopped.value.code
    assert all(number in cli._STATUS for number in ("0 ", "1 ", "2 ", "70 ", "130 "))


def test_ids_go_through_pipes_of_any_encoding(folder: Path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
    }
    words = ["recommend", str(folder / "m"), "--all", "-k", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "lowrank_opt.cli", *words],
        capture_output=True,
        env=environment,
        check=True,
    )
    users = {line.split(",")[0] for line in run.stdout.decode("utf-8").splitlines()[1:]}
    assert set(table()["user"]) == users


def test_standard_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = (folder / "r.csv").read_bytes()

    class Stdin:
        def __init__(self) -> None:
            self.buffer = io.BytesIO(data)

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert 0 == main(["complete", "-", "--out", str(tmp_path / "m"), "--quiet"])
    assert (
        CompletionResult.load(folder / "m").row_ids == CompletionResult.load(tmp_path / "m").row_ids
    )
    monkeypatch.setattr(sys, "stdin", Stdin())
    assert 0 == main(["predict", str(folder / "m"), "-", "--out", str(tmp_path / "p.csv")])
    assert 401 == len((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines())


def test_deep_json_is_damage(tmp_path: Path):
    (tmp_path / "result.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is no JSON"):
        CompletionResult.load(tmp_path)


def test_the_shell_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert 0 == main(["completion", "bash"])
    script = capsys.readouterr().out
    asked = script + (
        "COMP_WORDS=(lowrank-opt recommend --ex); COMP_CWORD=2; _lowrank_opt\n"
        'echo "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(lowrank-opt reco); COMP_CWORD=1; _lowrank_opt\n"
        'echo "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(lowrank-opt complete --duplicates me); COMP_CWORD=3; _lowrank_opt\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    run = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert ["--exclude-seen", "recommend", "mean"] == run.stdout.split()
    for shell in ("zsh", "fish"):
        assert 0 == main(["completion", shell])
        assert "--exclude-seen" in capsys.readouterr().out


def test_the_package_is_the_command():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "lowrank_opt", "--help"]
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert "usage: lowrank-opt" in run.stdout
    assert "Exit status: 0 done;" in run.stdout
