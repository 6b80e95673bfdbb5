"""Folders of results: they come back as they were, or are refused; a write is all or nothing."""

import datetime as dt
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import torch

import lowrank_opt as lo
from lowrank_opt import locks
from lowrank_opt.completion import (
    AdditiveBias,
    BayesianResult,
    CompletionResult,
    CompletionStatus,
    History,
    Iteration,
    check_writable,
)
from lowrank_opt.completion.model.ids import Lookup
from lowrank_opt.errors import DataError, ObservationError, ShapeError
from lowrank_opt.operator import LowRankOperator


def make(dtype: torch.dtype = torch.float64, seed: int = 0) -> CompletionResult:
    g = torch.Generator().manual_seed(seed)
    left, scale, right, rows, cols = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((5, 2), (2,), (4, 2), (5,), (4,))
    )
    history = History()
    history.append(Iteration(3.0, 1.0, math.nan, 0.1))
    history.append(Iteration(2.0, 0.5, 0.75, 0.2))
    op = LowRankOperator(left, scale, right)
    return CompletionResult(op, AdditiveBias(0.1, rows, cols), CompletionStatus.CONVERGED, history)


def draws() -> BayesianResult:
    shapes = ((3, 5, 2), (3, 4, 2), (3, 5), (3, 4))
    history = History()
    history.append(Iteration(3.0, 1.0, math.nan, 0.1))
    U, V, a, c = (torch.randn(s, generator=torch.Generator().manual_seed(1)) for s in shapes)
    return BayesianResult(U, V, a, c, 0.5, torch.ones(3), CompletionStatus.CONVERGED, history)


def assert_same(expected: CompletionResult, found: CompletionResult) -> None:
    pairs = zip(
        (*expected.operator, expected.bias.rows, expected.bias.cols),
        (*found.operator, found.bias.rows, found.bias.cols),
        strict=True,
    )
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert (expected.status, expected.bias.mean) == (found.status, found.bias.mean)
    assert (expected.row_ids, expected.col_ids) == (found.row_ids, found.col_ids)
    np.testing.assert_equal(expected.history.columns(), found.history.columns())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_round_trip(tmp_path: Path, dtype: torch.dtype):
    make(dtype).save(tmp_path / "result")
    assert_same(make(dtype), CompletionResult.load(tmp_path / "result"))


def test_folder_has_two_files_and_no_pickle(tmp_path: Path):
    make().save(tmp_path / "deep" / "result")
    files = {p.name: p.read_bytes() for p in (tmp_path / "deep" / "result").iterdir()}
    assert {"result.json", "result.safetensors"} == set(files)
    assert "lowrank_opt.result" == json.loads(files["result.json"])["format"]
    assert b"pickle" not in b"".join(files.values())


@pytest.mark.parametrize(
    ("row_ids", "col_ids"),
    [
        (("a", "", "ü\n,\x00", "007", "7"), (3, -(2**62), 0, 7)),
        (None, ("日本", "𝔘" * 100, " ", "\ud800")),
        ((1, 2, 3, 4, 5), None),
        (("a", 5, 2**70, b"\xff\x00", True), (0.1, -1e300, ("a", (1, "\ud800")), Decimal("0.10"))),
        (
            (
                dt.date(2020, 2, 29),
                dt.datetime(2020, 2, 29, 1, 2, 3, 4),
                dt.datetime(2020, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=2))),
                np.datetime64("2020-02-29T00:00:00", "ns"),
                np.datetime64("2020", "Y"),
            ),
            (UUID(int=5), dt.time(1, 2), np.timedelta64(3, "D"), pd.Timestamp(1, tz="Asia/Tokyo")),
        ),
        (
            None,
            (
                dt.timedelta(-1, 5, 7),
                dt.datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
                dt.datetime(2020, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo")),
                dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
            ),
        ),
    ],
)
def test_ids_come_back(tmp_path: Path, row_ids: tuple | None, col_ids: tuple | None):
    result = replace(make(), row_ids=row_ids, col_ids=col_ids)
    result.save(tmp_path / "result")
    found = CompletionResult.load(tmp_path / "result")
    assert_same(result, found)
    for expected, ids in ((row_ids, found.row_ids), (col_ids, found.col_ids)):
        assert [str(getattr(x, "dtype", type(x))) for x in expected or ()] == [
            str(getattr(x, "dtype", type(x))) for x in ids or ()
        ]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a"], ShapeError, "row_ids must name each of 5; got 1 names"),
        ([range(2), *"bcde"], ObservationError, r"range\(0, 2\) of builtins.range: convert them"),
        (["a", "b", "c", "a", "b"], ObservationError, "must be distinct; got 2 repetitions"),
        (["a", "b", "c", "d", ["e"]], ObservationError, "row_ids must be hashable"),
        ([1.0, 2.0, math.nan, 4.0, 5.0], ObservationError, "row_ids must not be missing"),
        (["a", "b", "c", "d", None], ObservationError, "row_ids must not be missing"),
    ],
)
def test_ids_are_checked(ids: list, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        replace(make(), row_ids=ids)


def test_lookup_knows_types_apart():
    assert [1, -1, 0] == Lookup(["1", "2"]).positions(["2", 1, "1"]).tolist()


def test_shared_and_strided_tensors_are_saved(tmp_path: Path):
    x = torch.arange(40.0).reshape(5, 8)
    shared = LowRankOperator(x[:, :2], torch.ones(2), x[:4, :2])
    result = replace(make(torch.float32), operator=shared)
    result = replace(result, bias=AdditiveBias(0.0, x[:, 3], x.T[4, :4]))
    result.save(tmp_path)
    assert_same(result, CompletionResult.load(tmp_path))
    x[:] = 0
    assert 8.0 == float(CompletionResult.load(tmp_path).operator.left[1, 0])


def test_saving_again_replaces(tmp_path: Path):
    make(seed=1).save(tmp_path)
    make(seed=2).save(tmp_path)
    assert_same(make(seed=2), CompletionResult.load(tmp_path))


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize(("renames", "survivor"), [(0, 1), (1, 1), (2, 2)])
def test_write_cut_off_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, survivor: int
):
    make(seed=1).save(tmp_path)
    done, rename = [], Path.replace

    def dying(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Killed
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            make(seed=2).save(tmp_path)
    assert_same(make(seed=survivor), CompletionResult.load(tmp_path))
    make(seed=3).save(tmp_path)
    assert_same(make(seed=3), CompletionResult.load(tmp_path))
    assert ["result.json", "result.safetensors"] == sorted(p.name for p in tmp_path.iterdir())


SAVE_FOREVER = """
import sys, torch, lowrank_opt as lo
from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
for k in range(10**9):
    op = lo.LowRankOperator(*(torch.full(s, float(k)) for s in ((500, 9), (9,), (400, 9))))
    bias = AdditiveBias(float(k), torch.full((500,), float(k)), torch.full((400,), float(k)))
    CompletionResult(op, bias, CompletionStatus.CONVERGED, History()).save(sys.argv[1])
    print(k, flush=True)
"""


def test_killed_while_it_writes(tmp_path: Path):
    """One result is there, whole, whichever it is."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(lo.__file__).parents[1])},
    )
    assert process.stdout is not None
    written = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = CompletionResult.load(tmp_path)
    everything = torch.cat([x.reshape(-1) for x in (*result.operator, result.bias.rows)])
    assert {result.bias.mean} == set(everything.tolist())
    assert result.bias.mean >= written[-1]


@pytest.mark.parametrize("reading", [False, True])
def test_what_a_killed_writer_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: bool
):
    make(seed=1).save(tmp_path)
    left = [tmp_path / f".result.{end}.1.part" for end in ("json", "safetensors")]
    mine = [tmp_path / name for name in (".notes.part", "result.json.1.part")]
    for path in (*left, *mine):
        path.write_text("")

    def use() -> None:
        _ = CompletionResult.load(tmp_path) if reading else make(seed=2).save(tmp_path)

    # Where nothing can be held against others, one of these may be at work.
    with monkeypatch.context() as patch:
        patch.setattr(locks, "fcntl", None)
        os.utime(left[0], (0, 0))
        use()
    assert [False, True] == [x.exists() for x in left]
    use()
    assert {*mine, tmp_path / "result.json", tmp_path / "result.safetensors"} == {
        *tmp_path.iterdir()
    }


def test_a_reader_leaves_a_writer_at_work_alone(tmp_path: Path):
    make(seed=1).save(tmp_path)
    part = tmp_path / ".result.safetensors.1.part"
    part.write_text("")
    with ThreadPoolExecutor(1) as other, locks.locked(tmp_path):
        assert_same(make(seed=1), other.submit(CompletionResult.load, tmp_path).result())
        with pytest.raises(DataError, match="another one holds"):
            other.submit(locks.locked(tmp_path, wait=False).__enter__).result()
    assert part.exists()
    assert_same(make(seed=1), CompletionResult.load(tmp_path))
    assert not part.exists()


def test_failed_save_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    make().save(tmp_path)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DataError, match=r"written to a folder; .* No space left on device: choose"):
        make(seed=2).save(tmp_path)
    assert_same(make(), CompletionResult.load(tmp_path))
    assert 2 == len(list(tmp_path.iterdir()))


def test_unwritable_paths(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "result.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"written to a folder; got .* is a file: choose"):
        check_writable(tmp_path / "file")
    with pytest.raises(DataError, match="is a file: choose"):
        check_writable(tmp_path / "file" / "x")
    with pytest.raises(DataError, match=r"holds a foreign result\.json: choose"):
        make().save(tmp_path / "foreign")
    assert '{"a": 1}' == (tmp_path / "foreign" / "result.json").read_text()


def test_check_writable_leaves_nothing(tmp_path: Path):
    assert tmp_path / "x" / "y" == check_writable(tmp_path / "x" / "y")
    assert [] == list(tmp_path.iterdir())


def edit(folder: Path, **changes: object) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def truncate(file: Path, count: int = 9) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "result.json").unlink(), r"a folder with result\.json .*No such file"),
        (lambda p: (p / "result.safetensors").unlink(), "a folder with .*No such file"),
        (lambda p: truncate(p / "result.json"), "is no JSON: save"),
        (lambda p: truncate(p / "result.safetensors"), "truncated, changed, or of another save"),
        (lambda p: flip(p / "result.safetensors"), "truncated, changed, or of another save"),
        (lambda p: edit(p, format="other"), "of another format"),
        (lambda p: edit(p, version=3), "of version 2 or below; .* has version 3: use"),
        (lambda p: edit(p, version="x"), "has version 'x'"),
        (lambda p: edit(p, kind="BayesianResult"), "holds a BayesianResult: use BayesianResult"),
        (lambda p: edit(p, status="FINE"), "foreign or damaged"),
    ],
)
def test_foreign_or_damaged_folder(tmp_path: Path, spoil: Callable[[Path], object], message: str):
    make().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        CompletionResult.load(tmp_path)


def test_draws_come_back(tmp_path: Path):
    draws().save(tmp_path)
    found = BayesianResult.load(tmp_path)
    assert torch.equal(draws().predict([0, 4], [1, 2]), found.predict([0, 4], [1, 2]))
    assert draws().history.objective == found.history.objective
    with pytest.raises(DataError, match=r"this is for a CompletionResult; .* use BayesianResult"):
        CompletionResult.load(tmp_path)
