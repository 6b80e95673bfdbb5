"""Cost, precision, checks and dispatch of the kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from experiments import kernel_speed
from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.kernels import functions, observed_entries, observed_squared_loss, use_backend
from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.batches import backend as reference
from lowrank_opt.kernels.batches import entries as batched_entries
from lowrank_opt.kernels.loops import backend as cpu
from lowrank_opt.kernels.loops import entries as loop_entries
from lowrank_opt.kernels.protocol import Backend, ModelParts
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator
from tests.completion_cases import LargestAllocation
from tests.preloaded import run_script

BACKENDS = pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])


def planted(
    m: int, n: int, nnz: int, rank: int, *, dtype: torch.dtype = torch.float64
) -> tuple[ModelParts, Observations]:
    g = torch.Generator().manual_seed(0)
    cells = torch.randperm(m * n, generator=g)[:nnz]
    values = torch.randn(nnz, generator=g, dtype=dtype)
    shapes = ((m, rank), (n, rank), (m,), (n,))
    parts = (torch.randn(shape, generator=g, dtype=dtype, requires_grad=True) for shape in shapes)
    return ModelParts(*parts), Observations(cells // n, cells % n, values, (m, n))


def operator_of(model: ModelParts) -> LowRankOperator:
    scale = torch.linspace(0.5, 2.0, model.left.shape[1], dtype=model.left.dtype)
    return LowRankOperator(model.left, scale.requires_grad_(), model.right)


def bias_of(model: ModelParts) -> tuple[Tensor, Tensor]:
    assert model.row_bias is not None
    assert model.col_bias is not None
    return model.row_bias, model.col_bias


def dense_predictions(op: LowRankOperator, bias: tuple[Tensor, Tensor]) -> Tensor:
    return (op.left * op.scale) @ op.right.T + bias[0].unsqueeze(1) + bias[1]


@BACKENDS
def test_gradcheck_squared_loss(backend: Backend):
    model, observations = planted(5, 4, 9, 3)
    weights = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert gradcheck(
        lambda *parts: functions.squared_loss(ModelParts(*parts), observations, weights, backend),
        tuple(model),
    )


@BACKENDS
def test_gradcheck_entries(backend: Backend):
    model, observations = planted(5, 4, 9, 3)
    assert gradcheck(
        lambda *parts: functions.entries(ModelParts(*parts), observations, backend), tuple(model)
    )


def test_gradient_of_every_part_squared_loss():
    model, observations = planted(6, 5, 17, 3)
    op, bias = operator_of(model), bias_of(model)
    inputs = [*op, *bias]
    rows, cols, values = observations.rows, observations.cols, observations.values
    truth = (dense_predictions(op, bias)[rows, cols] - values).square().sum()
    loss = observed_squared_loss(op, observations, bias=bias)
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(truth, inputs)
    )


@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_one_part_alone(wanted: int):
    model, observations = planted(6, 5, 17, 3)
    alone = ModelParts(*(x.detach().requires_grad_(k == wanted) for k, x in enumerate(model)))
    functions.squared_loss(model, observations, None, cpu).backward()
    functions.squared_loss(alone, observations, None, cpu).backward()
    assert [k == wanted for k in range(4)] == [x.grad is not None for x in alone]
    torch.testing.assert_close(alone[wanted].grad, model[wanted].grad)


@BACKENDS
@pytest.mark.parametrize("operation", ["squared_loss", "entries"])
def test_no_entries_by_rank_tensor(
    backend: Backend, operation: str, monkeypatch: pytest.MonkeyPatch
):
    nnz, rank = 20_000, 32
    monkeypatch.setattr(batched_entries, "BLOCK", 1 << 16)
    model, observations = planted(300, 200, nnz, rank)
    calls: dict[str, Callable[[], Tensor]] = {
        "squared_loss": lambda: functions.squared_loss(model, observations, None, backend),
        "entries": lambda: functions.entries(model, observations, backend).square().sum(),
    }
    with LargestAllocation() as largest:
        calls[operation]().backward()
    assert largest.numel <= 1 << 16 < nnz * rank


def test_largest_allocation_sees_the_gather():
    model, observations = planted(30, 20, 200, 4)
    with LargestAllocation() as largest:
        (model.left[observations.rows] * model.right[observations.cols]).sum()
    assert 200 * 4 == largest.numel


def test_forward_without_gradient_allocates_no_factor_gradient(monkeypatch: pytest.MonkeyPatch):
    model, observations = planted(300, 200, 100, 8)

    def forbidden(*_: object) -> None:
        raise AssertionError("a column pass was made")

    monkeypatch.setattr(loop_entries, "product_pass", forbidden)
    with torch.no_grad(), LargestAllocation() as largest:
        functions.squared_loss(model, observations, None, cpu)
    assert largest.numel <= 300


def test_result_does_not_depend_on_threads():
    model, observations = planted(700, 500, 100_000, 16, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = functions.squared_loss(model, observations, None, cpu)
            results.append((loss, *torch.autograd.grad(loss, model)))
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True)
    )


def test_long_row_keeps_float32_precision():
    nnz = 300_000
    left, right = torch.ones(1, 1, requires_grad=True), torch.ones(nnz, 1)
    observations = Observations(
        torch.zeros(nnz, dtype=torch.int64), range(nnz), [0.9] * nnz, (1, nnz)
    )
    functions.squared_loss(ModelParts(left, right), observations, None, cpu).backward()
    exact = 2 * nnz * (1 - float(torch.tensor(0.9)))
    assert exact == pytest.approx(left.grad.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype: torch.dtype):
    model, observations = planted(6, 5, 17, 3, dtype=torch.float32)
    half = LowRankOperator(*(x.detach().to(dtype).requires_grad_() for x in operator_of(model)))
    same = LowRankOperator(*(x.detach().float().requires_grad_() for x in half))
    loss, exact = (
        observed_squared_loss(half, observations),
        observed_squared_loss(same, observations),
    )
    loss.backward()
    exact.backward()
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(half.right.grad, same.right.grad.to(dtype))


def test_scale_of_higher_precision():
    left, right = torch.ones(2, 1, requires_grad=True), torch.ones(2, 1)
    scale = torch.full((1,), 3.0, dtype=torch.float64, requires_grad=True)
    observations = Observations([0], [1], [1.0], (2, 2))
    observed_squared_loss(LowRankOperator(left, scale, right), observations).backward()
    assert torch.equal(torch.tensor([4.0], dtype=torch.float64), scale.grad)
    assert torch.equal(torch.tensor([[12.0], [0.0]]), left.grad)


def test_dtype_of_the_loss():
    model, observations = planted(6, 5, 17, 3, dtype=torch.float32)
    op = operator_of(model)
    assert torch.float32 == observed_squared_loss(op, observations).dtype
    assert torch.float64 == observed_squared_loss(op, observations, dtype=torch.float64).dtype


def test_not_finite_factors_give_a_loss_that_is_not_finite():
    observations = Observations([0, 1], [0, 1], [0.0, 0.0], (2, 2))
    factor = torch.tensor([[float("nan")], [1.0]])
    op = LowRankOperator(factor, torch.ones(1), torch.ones(2, 1))
    assert observed_squared_loss(op, observations).isnan()


def test_double_backward_is_refused():
    model, observations = planted(3, 3, 4, 1)
    loss = functions.squared_loss(model, observations, None, cpu)
    with pytest.raises(NotImplementedError, match="differentiable once; got create_graph=True"):
        torch.autograd.grad(loss, model.left, create_graph=True)


def test_error_shape_of_operator():
    model, observations = planted(6, 5, 17, 3)
    with pytest.raises(ShapeError, match=r"shape of the observations; got factors \(5, 3\)"):
        observed_squared_loss(operator_of(model).mT, observations)


def test_error_bias_shape():
    model, observations = planted(6, 5, 17, 3)
    row_bias, col_bias = bias_of(model)
    with pytest.raises(ShapeError, match=r"the row bias must be floating, of shape \(6,\)"):
        observed_entries(operator_of(model), observations, bias=(col_bias, row_bias))


def test_error_device():
    model, observations = planted(6, 5, 17, 3)
    op = LowRankOperator(*(x.detach().to("meta") for x in operator_of(model)))
    with pytest.raises(ShapeError, match="on the device of the observations"):
        observed_squared_loss(op, observations)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), ShapeError, r"weights must be floating, of shape \(17,\)"),
        (torch.full((17,), -1.0), ObservationError, "finite and nonnegative; got 17 of 17"),
        (torch.zeros(17), ObservationError, "at least must be positive"),
        (torch.ones(17, requires_grad=True), ObservationError, "must not require a gradient"),
    ],
)
def test_error_weights(weights: Tensor, error: type[Exception], message: str):
    model, observations = planted(6, 5, 17, 3)
    with pytest.raises(error, match=message):
        observed_squared_loss(operator_of(model), observations, weights)


def test_backends_are_of_a_device_or_asked_for(monkeypatch: pytest.MonkeyPatch):
    here, there = torch.device("cpu"), torch.device("cuda")
    assert (cpu, reference) == (backend_of(here), backend_of(there))
    with use_backend("torch"):
        assert backend_of(here) is reference
        with use_backend("numba"):
            assert (cpu, reference) == (backend_of(here), backend_of(there))
    monkeypatch.setenv("LOWRANK_OPT_BACKEND", "torch")
    assert backend_of(here) is reference
    monkeypatch.setenv("LOWRANK_OPT_BACKEND", "cupy")
    with pytest.raises(OptionError, match="_BACKEND must be 'numba', 'torch' or 'triton'"):
        backend_of(here)


def test_numba_is_imported_only_when_needed_and_may_be_absent(tmp_path: Path):
    code = """
import sys
import torch
import lowrank_opt as lo
from lowrank_opt.kernels import observed_squared_loss
from lowrank_opt.observations import Observations
assert "numba" not in sys.modules
sys.modules["numba"] = None
import importlib.util
importlib.util.find_spec = lambda name, package=None: None
op = lo.LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(3, 1))
import lowrank_opt.kernels.backend as backend
backend.find_spec = importlib.util.find_spec
print(float(observed_squared_loss(op, Observations([0, 1], [2, 0], [3.0, 1.0], (2, 3)))))
"""
    (tmp_path / "script.py").write_text(code)
    done = run_script(tmp_path / "script.py", folder=tmp_path)
    assert "4.0\n" == done.stdout, done.stderr


def test_kernel_speed_experiment_compares_equal_results():
    timing = kernel_speed.measure(kernel_speed.random_observations((30, 20), 200, 0), 2, 3, 0)
    assert 3 == len(timing.ratios) == len(timing.record()["fused"])
    assert timing.loss_difference < 1e-6
    assert timing.gradient_difference < 1e-5
