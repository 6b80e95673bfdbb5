"""Results: predictions, and files that come back as they were."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lowrank_opt as lo
from lowrank_opt.completion import (
    AdditiveBias,
    CompletionResult,
    CompletionStatus,
    History,
    Iteration,
    check_writable,
)
from lowrank_opt.errors import DataError, ObservationError, ShapeError


def make(dtype: torch.dtype = torch.float64) -> CompletionResult:
    g = torch.Generator().manual_seed(0)
    left, scale, right, rows, cols = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((5, 2), (2,), (4, 2), (5,), (4,))
    )
    history = History()
    history.append(Iteration(3.0, 1.0, math.nan, 0.1))
    history.append(Iteration(2.0, 0.5, 0.75, 0.2))
    op = lo.LowRankOperator(left, scale, right)
    return CompletionResult(op, AdditiveBias(0.5, rows, cols), CompletionStatus.CONVERGED, history)


def dense(result: CompletionResult) -> Tensor:
    left, scale, right = result.operator
    bias = result.bias
    return left @ torch.diag(scale) @ right.T + bias.rows[:, None] + bias.cols[None] + bias.mean


def test_dense():
    torch.testing.assert_close(make().to_dense(), dense(make()))


@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        ([0, 4, 2], [3, 0, 0]),
        (np.array([0, 4], dtype=np.int32), np.array([3, 1])),
        (torch.tensor([1, 1], dtype=torch.int16), [2, 2]),
        (3, 2),
        (np.int64(3), 2),
        (2, [0, 1, 2, 3]),
        (torch.arange(5).unsqueeze(1), torch.arange(4)),
        ([], []),
    ],
)
def test_predictions(rows: Tensor, cols: Tensor):
    expected = dense(make())[torch.as_tensor(rows).long(), torch.as_tensor(cols).long()]
    torch.testing.assert_close(make().predict(rows, cols), expected)


def test_clip():
    predictions = make().predict(torch.arange(5).unsqueeze(1), torch.arange(4), clip=(0.0, 0.5))
    assert (0.0, 0.5) == (float(predictions.min()), float(predictions.max()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 5], [0, 0]), ObservationError, r"rows must be in 0\.\.4; got 1 of 2 .* first 5"),
        ((0, -1), ObservationError, r"cols must be in 0\.\.3; got 1 of 1 outside, the first -1"),
        (([0.0], [0]), ObservationError, "rows must be integers; got dtype torch.float64"),
        (([True], [0]), ObservationError, "rows must be integers; got dtype torch.bool"),
        (([0, 1], [0, 1, 2]), ShapeError, r"broadcast; got \(2,\) and \(3,\)"),
    ],
)
def test_predict_refuses(
    arguments: tuple[list[int], list[int]], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        make().predict(*arguments)


@pytest.mark.parametrize("clip", [(5.0, 1.0), (math.nan, 1.0)])
def test_clip_must_ascend(clip: tuple[float, float]):
    with pytest.raises(ObservationError, match=r"clip must be \(smallest, largest\); got"):
        make().predict(0, 0, clip=clip)


def test_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().status = CompletionStatus.STALLED


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_round_trip(tmp_path: Path, dtype: torch.dtype):
    result = make(dtype)
    result.save(tmp_path / "result.npz")
    other = CompletionResult.load(tmp_path / "result.npz")
    pairs = zip(
        (*result.operator, result.bias.rows, result.bias.cols),
        (*other.operator, other.bias.rows, other.bias.cols),
        strict=True,
    )
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert (result.status, result.bias.mean) == (other.status, other.bias.mean)
    np.testing.assert_equal(result.history.columns(), other.history.columns())


def test_path_is_kept_as_given(tmp_path: Path):
    make().save(str(tmp_path / "no_suffix"))
    assert ["no_suffix"] == [p.name for p in tmp_path.iterdir()]


def test_saving_again_replaces(tmp_path: Path):
    path = tmp_path / "result.npz"
    path.write_text("old")
    make().save(path)
    assert (5, 4) == CompletionResult.load(path).shape


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "result.npz"
    make().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"must be writable; .* No space left on device: choose"):
        make().save(path)
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent/result.npz", "needs an existing folder; got .*create"), (".", "got the folder")],
)
def test_unwritable_path(tmp_path: Path, name: str, message: str):
    with pytest.raises(DataError, match=message):
        check_writable(tmp_path / name)


def test_check_writable_leaves_nothing(tmp_path: Path):
    assert tmp_path / "x" == check_writable(tmp_path / "x")
    assert [] == list(tmp_path.iterdir())


def saved_with(path: Path, **changes: object) -> None:
    """Save a result with some arrays, or parts of the header, replaced."""
    make().save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"]))
    header |= {k: v for k, v in changes.items() if k in header}
    arrays |= {k: v for k, v in changes.items() if k not in header}
    np.savez(path.open("wb"), **(arrays | {"header": np.array(json.dumps(header))}))


def truncate(path: Path) -> None:
    make().save(path)
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    make().save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "must be readable; got .*No such file"),
        (lambda path: path.mkdir(), "must be readable; got .*directory"),
        (lambda path: path.write_bytes(b""), "foreign or damaged"),
        (lambda path: path.write_text("text"), "foreign or damaged"),
        (lambda path: np.save(path.open("wb"), np.ones(3)), "foreign or damaged"),
        (lambda path: np.save(path.open("wb"), np.array([{}]), allow_pickle=True), "foreign or"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "foreign or damaged"),
        (truncate, "foreign or damaged"),
        (flip, "foreign or damaged"),
        (lambda path: saved_with(path, format="other"), "another format"),
        (lambda path: saved_with(path, version=2), "up to version 1; .* has version 2: install"),
        (lambda path: saved_with(path, status="FINE"), "foreign or damaged"),
        (lambda path: saved_with(path, dtypes={"left": "float64"}), "foreign or damaged"),
        (lambda path: saved_with(path, dtypes={"left": "nn"}), "dtype 'nn'"),
        (lambda path: saved_with(path, row_bias=np.zeros(3)), "biases do not fit"),
        (lambda path: saved_with(path, scale=np.zeros(3)), "foreign or damaged"),
    ],
)
def test_foreign_or_damaged_file(tmp_path: Path, spoil: Callable[[Path], object], message: str):
    path = tmp_path / "result.npz"
    spoil(path)
    with pytest.raises(DataError, match=message):
        CompletionResult.load(path)


def test_history_as_a_frame():
    frame = make().history.to_pandas()
    assert list(Iteration._fields) == list(frame.columns)
    assert [3.0, 2.0] == frame["objective"].tolist()


def test_bias_to():
    assert torch.float32 == make().bias.to(dtype=torch.float32).rows.dtype


def test_summary_reads():
    text = make().summary()
    assert "5 x 4, rank <= 2, torch.float64" in text
    assert "objective 3 -> 2, 1 steps in 0.20 s\nvalidation RMSE 0.7500" in text
    assert CompletionStatus.CONVERGED.value in text


def test_representation_is_one_short_line():
    assert "CompletionResult(5 x 4, rank <= 2, CONVERGED, 2 iterates)" == repr(make())


@pytest.mark.parametrize("status", CompletionStatus)
def test_status_is_a_sentence(status: CompletionStatus):
    assert status.value.endswith(".")
    assert status.value[0].isupper()
