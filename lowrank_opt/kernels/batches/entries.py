"""The operations in plain torch: any device, blocks of bounded size."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_opt.kernels.protocol import Gradient, ModelParts, Needed
from lowrank_opt.observations import Observations

# Numbers gathered at a time: memory does not grow with entries x rank.
BLOCK = 1 << 20


def squared_loss(
    model: ModelParts, observations: Observations, weights: Tensor | None, needed: Needed
) -> tuple[Tensor, Gradient]:
    """Return the float64 sum of weighted squared residuals, and its gradient."""
    residuals = entries(model, observations) - observations.values.to(model.left.dtype)
    w = observations.weights if weights is None else weights
    weighted = residuals if w is None else residuals * w.to(residuals.dtype)
    loss = torch.dot(residuals.double(), weighted.double())
    if not any(needed):
        return loss, Gradient()
    return loss, entries_gradient(model, observations, 2 * weighted, needed)


def entries(model: ModelParts, observations: Observations) -> Tensor:
    """Return the predictions, in the order of the observations."""
    left, right, row_bias, col_bias = model
    out = left.new_empty(len(observations))
    for block, i, j in _blocks(observations, left.shape[1]):
        out[block] = (left[i] * right[j]).sum(-1)
        if row_bias is not None and col_bias is not None:
            out[block] += row_bias[i] + col_bias[j]
    return out


def entries_gradient(
    model: ModelParts, observations: Observations, gradient: Tensor, needed: Needed
) -> Gradient:
    """Return the gradient of ``(gradient * entries).sum()``.

    On CUDA the sums are atomic: their last bits differ from run to run, unless
    ``torch.use_deterministic_algorithms(True)`` is set.
    """
    out = Gradient(*(_zeros(x) if need else None for x, need in zip(model, needed, strict=True)))
    for block, i, j in _blocks(observations, model.left.shape[1]):
        g = gradient[block]
        if out.left is not None:
            out.left.index_add_(0, i, g.unsqueeze(-1) * model.right[j])
        if out.right is not None:
            out.right.index_add_(0, j, g.unsqueeze(-1) * model.left[i])
        if out.row_bias is not None:
            out.row_bias.index_add_(0, i, g)
        if out.col_bias is not None:
            out.col_bias.index_add_(0, j, g)
    return out


def _blocks(observations: Observations, rank: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    size = max(1, BLOCK // rank)
    for start in range(0, len(observations), size):
        block = slice(start, start + size)
        yield block, observations.rows[block], observations.cols[block]


def _zeros(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.zeros_like(x)
