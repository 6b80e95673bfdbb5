"""The public operations: check, bring to one dtype, and choose the backend of the device."""

import torch
from torch import Tensor

from lowrank_opt.errors import ShapeError
from lowrank_opt.kernels import functions
from lowrank_opt.kernels.parts import backend_for
from lowrank_opt.kernels.protocol import ModelParts
from lowrank_opt.observations import Observations
from lowrank_opt.observations.coordinates import check_weights
from lowrank_opt.observations.parts import held_shape
from lowrank_opt.operator import LowRankOperator


def observed_squared_loss(
    op: LowRankOperator,
    observations: Observations,
    weights: Tensor | None = None,
    *,
    bias: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Return :math:`\sum_k w_k (W_{i_k j_k} + a_{i_k} + b_{j_k} - v_k)^2` over observed entries.

    Differentiable once in the factors and the biases. Forward and backward need memory for a few
    numbers per entry and for the factors, never for entries x rank. Sums over entries are
    accumulated in float64. On the CPU the result does not depend on the number of threads.

    Parameters
    ----------
    op : LowRankOperator, shape (m, n)
        Half-precision factors are computed with in float32.
    observations : Observations
    weights : Tensor, shape (nnz,), optional
        Instead of those of `observations`; in their order, constant.
    bias : pair of Tensor, shapes (m,) and (n,), optional
        Row and column biases a and b.
    dtype : torch.dtype, optional
        Of the result; by default that of the factors, float32 for half precision.

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    ShapeError
        If shapes or devices do not fit.
    ObservationError
        If `weights` are negative, not finite, all zero, or require a gradient.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(3, 1))
    >>> observed_squared_loss(op, Observations([0, 1], [2, 0], [3.0, 1.0], (2, 3)))
    tensor(4.)
    """
    backend = backend_for(observations)
    model = _model(op, observations, bias, half=backend.reads_half)
    if weights is not None:
        _check_placed(weights, "weights", (len(observations),), observations.device)
        check_weights(weights)
    loss = functions.squared_loss(model, observations, weights, backend)
    return loss.to(model.left.dtype if dtype is None else dtype)


def observed_entries(
    op: LowRankOperator,
    observations: Observations,
    *,
    bias: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Return :math:`W_{i_k j_k} + a_{i_k} + b_{j_k}` in the order of the observations.

    Differentiable once in the factors and the biases, with the memory of `observed_squared_loss`;
    any loss of the residuals can be built on it.

    Parameters
    ----------
    op : LowRankOperator, shape (m, n)
    observations : Observations
        Only its indices are used.
    bias : pair of Tensor, shapes (m,) and (n,), optional

    Returns
    -------
    Tensor, shape (nnz,)
        In the dtype of the factors, float32 for half precision.

    Raises
    ------
    ShapeError
        If shapes or devices do not fit.

    Examples
    --------
    >>> op = LowRankOperator(torch.ones(2, 1), torch.ones(1), torch.ones(3, 1))
    >>> observed_entries(op, Observations([0, 1], [2, 0], [3.0, 1.0], (2, 3)))
    tensor([1., 1.])
    """
    backend = backend_for(observations)
    model = _model(op, observations, bias, half=backend.reads_half)
    return functions.entries(model, observations, backend)


def _model(
    op: LowRankOperator,
    observations: Observations,
    bias: tuple[Tensor, Tensor] | None,
    *,
    half: bool,
) -> ModelParts:
    shape = held_shape(observations)
    if op.left.ndim != 2 or op.shape != shape:
        raise ShapeError(
            "the operator must be one matrix of the shape of the observations; got factors "
            f"{tuple(op.left.shape)} and {tuple(op.right.shape)} for {shape}"
        )
    _check_placed(op.left, "factors", tuple(op.left.shape), observations.device)
    dtype = torch.promote_types(op.dtype, torch.float32)
    left = (op.left.to(torch.promote_types(dtype, op.scale.dtype)) * op.scale).to(dtype)
    right = op.right if half and op.right.dtype == torch.bfloat16 else op.right.to(dtype)
    if bias is None:
        return ModelParts(left, right)
    for name, vector, size in zip(("row", "column"), bias, op.shape, strict=True):
        _check_placed(vector, f"the {name} bias", (size,), observations.device)
    return ModelParts(left, right, bias[0].to(dtype), bias[1].to(dtype))


def _check_placed(x: Tensor, name: str, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(x.shape) != shape or x.device != device or not x.is_floating_point():
        raise ShapeError(
            f"{name} must be floating, of shape {shape}, on the device of the observations "
            f"({device}); got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )
