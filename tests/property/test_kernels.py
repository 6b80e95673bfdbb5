"""The kernels against the dense computation in float64."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowrank_opt.kernels import functions
from lowrank_opt.kernels.batches import backend as reference
from lowrank_opt.kernels.loops import backend as cpu
from lowrank_opt.kernels.protocol import Backend, ModelParts
from lowrank_opt.observations import Observations

BACKENDS = pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])


class Case(NamedTuple):
    """A model and observations, weighted by an argument, by themselves, or not at all."""

    model: ModelParts
    observations: Observations
    weights: Tensor | None


@st.composite
def cases(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64, max_side: int = 7) -> Case:
    m, n = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rank, nnz = draw(st.integers(1, 9)), draw(st.integers(1, m * n))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=dtype)

    cells = torch.randperm(m * n, generator=g)[:nnz]
    weights = draw(st.sampled_from(["none", "own", "given"]))
    w = normal(nnz).square() + 1e-3
    observations = Observations(
        cells // n, cells % n, normal(nnz), (m, n), w if weights == "own" else None
    )
    model = ModelParts(normal(m, rank), normal(n, rank))
    if draw(st.booleans()):
        model = model._replace(row_bias=normal(m), col_bias=normal(n))
    return Case(model, observations, w if weights == "given" else None)


def leaves(model: ModelParts, dtype: torch.dtype = torch.float64) -> ModelParts:
    return ModelParts(
        *(None if x is None else x.detach().to(dtype).requires_grad_() for x in model)
    )


def gradients(model: ModelParts) -> list[Tensor]:
    return [x.grad for x in model if x is not None and x.grad is not None]


def dense_entries(model: ModelParts, observations: Observations) -> Tensor:
    W = model.left @ model.right.T
    if model.row_bias is not None:
        W = W + model.row_bias.unsqueeze(1) + model.col_bias
    return W[observations.rows, observations.cols]


def dense_loss(case: Case, model: ModelParts) -> Tensor:
    own = case.observations.weights
    w = own if case.weights is None else case.weights
    squares = (dense_entries(model, case.observations) - case.observations.values.double()).square()
    return squares.sum() if w is None else (w.double() * squares).sum()


@BACKENDS
@given(case=cases())
def test_value_squared_loss(backend: Backend, case: Case) -> None:
    expected = dense_loss(case, case.model)
    actual = functions.squared_loss(*case, backend)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@BACKENDS
@given(case=cases())
def test_gradient_squared_loss(backend: Backend, case: Case) -> None:
    expected, actual = leaves(case.model), leaves(case.model)
    dense_loss(case, expected).backward()
    (3 * functions.squared_loss(actual, case.observations, case.weights, backend)).backward()
    thrice = [3 * g for g in gradients(expected)]
    torch.testing.assert_close(gradients(actual), thrice, rtol=1e-12, atol=1e-12)


@BACKENDS
@given(case=cases(dtype=torch.float32, max_side=40))
def test_float32_squared_loss(backend: Backend, case: Case) -> None:
    expected, actual = leaves(case.model), leaves(case.model, torch.float32)
    truth = dense_loss(case, expected)
    loss = functions.squared_loss(actual, case.observations, case.weights, backend)
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=1e-6 * (1 + len(case.observations)))
    truth.backward()
    loss.backward()
    size = max(float(g.abs().max()) for g in gradients(expected))
    exact = [g.float() for g in gradients(expected)]
    torch.testing.assert_close(gradients(actual), exact, rtol=0, atol=1e-6 * max(1.0, size))


@BACKENDS
@given(case=cases())
def test_value_entries(backend: Backend, case: Case) -> None:
    expected = dense_entries(case.model, case.observations)
    actual = functions.entries(case.model, case.observations, backend)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@BACKENDS
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_gradient_entries(backend: Backend, case: Case, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    upstream = torch.randn(len(case.observations), generator=g, dtype=torch.float64)
    expected, actual = leaves(case.model), leaves(case.model)
    dense_entries(expected, case.observations).backward(upstream)
    functions.entries(actual, case.observations, backend).backward(upstream)
    torch.testing.assert_close(gradients(actual), gradients(expected), rtol=1e-12, atol=1e-12)
