"""Results: predictions, and what they say of themselves."""

import dataclasses
import math

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
)
from lowrank_opt.errors import ObservationError, ShapeError


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
