"""The two differentiable operations, on top of whichever backend computes them.

Here the matrix is ``left @ right.T``, with the scale already in `left`; predictions are
``left[i] . right[j] + row_bias[i] + col_bias[j]``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lowrank_opt.kernels.protocol import ModelParts, Needed, ObservedBackend
from lowrank_opt.observations import Observations


def squared_loss(
    model: ModelParts, observations: Observations, weights: Tensor | None, backend: ObservedBackend
) -> Tensor:
    """Return the sum of weighted squared residuals, float64, differentiable once."""
    if not _records(model):
        return backend.squared_loss(model, observations, weights, Needed())[0]
    return _SquaredLoss.apply(*model, observations, weights, backend)


def entries(model: ModelParts, observations: Observations, backend: ObservedBackend) -> Tensor:
    """Return the predictions, shape (nnz,), differentiable once."""
    if not _records(model):
        return backend.entries(model, observations)
    return _Entries.apply(*model, observations, backend)


def _records(model: ModelParts) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in model)


def _refuse_second_order() -> None:
    # torch's once_differentiable would treat the gradient as a constant in silence.
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "the observed-entries operations are differentiable once; got create_graph=True: "
            "take second derivatives by finite differences of the gradient, or of op.entries"
        )


class _SquaredLoss(Function):
    # The gradient costs little more than the loss while a row is in cache: forward computes both,
    # and what it saves has the size of the factors.

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        left: Tensor,
        right: Tensor,
        row_bias: Tensor | None,
        col_bias: Tensor | None,
        observations: Observations,
        weights: Tensor | None,
        backend: ObservedBackend,
    ) -> Tensor:
        model, needed = (
            ModelParts(left, right, row_bias, col_bias),
            Needed(*ctx.needs_input_grad[:4]),
        )
        loss, gradient = backend.squared_loss(model, observations, weights, needed)
        ctx.save_for_backward(*gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        _refuse_second_order()
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        parts = (None if x is None else x * grad_outputs[0].to(x.dtype) for x in saved)
        return (*parts, None, None, None)


class _Entries(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        left: Tensor,
        right: Tensor,
        row_bias: Tensor | None,
        col_bias: Tensor | None,
        observations: Observations,
        backend: ObservedBackend,
    ) -> Tensor:
        ctx.save_for_backward(left, right, row_bias, col_bias)
        ctx.observations, ctx.backend = observations, backend
        return backend.entries(ModelParts(left, right, row_bias, col_bias), observations)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        _refuse_second_order()
        model, needed = ModelParts(*ctx.saved_tensors), Needed(*ctx.needs_input_grad[:4])
        backend: ObservedBackend = ctx.backend
        parts = backend.entries_gradient(model, ctx.observations, grad_outputs[0], needed)
        return (*parts, None, None)
