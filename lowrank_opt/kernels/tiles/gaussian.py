"""Gaussian posteriors of all rows, by Triton kernels: sums of moments, then small systems."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_opt.kernels.batches import backend as batches
from lowrank_opt.kernels.protocol import Given, ModelParts
from lowrank_opt.kernels.tiles import sizes
from lowrank_opt.kernels.tiles.entries import products as products_of
from lowrank_opt.kernels.tiles.entries import residuals
from lowrank_opt.kernels.tiles.gaussian_kernels import posterior_kernel
from lowrank_opt.kernels.tiles.launch import Outputs, aligned


def posterior(
    given: Given, means: Tensor, products: Tensor, losses: Tensor, logdets: Tensor
) -> None:
    """Write the posterior of each row, as `GaussianRows.posterior`."""
    if means.shape[1] > sizes.WIDEST_POSTERIOR:
        return batches.posterior(given, means, products, losses, logdets)
    return _each_row(given, None, means, products, losses, logdets)


def draw(given: Given, noise: Tensor, means: Tensor, losses: Tensor) -> None:
    """Write a draw from the posterior of each row, as `GaussianRows.draw`."""
    if means.shape[1] > sizes.WIDEST_DRAW:
        return batches.draw(given, noise, means, losses)
    return _each_row(given, noise.contiguous(), means, None, losses, None)


def _each_row(
    given: Given,
    noise: Tensor | None,
    means: Tensor,
    products: Tensor | None,
    losses: Tensor,
    logdets: Tensor | None,
) -> None:
    axis, values, weights, D = given.axis, given.values, given.weights, means.shape[1] - 1
    vectors, others = aligned(given.products), aligned(given.means)
    summed, _ = products_of(axis, None, weights, vectors)
    towards, _ = products_of(axis, None, weights * values, others)
    quadratics, fitted = torch.empty_like(losses), torch.empty_like(losses)
    packed = products if products is None else aligned(products)
    tile = sizes.posterior_tile(D + 1)
    posterior_kernel[(len(means),)](
        *(summed, towards, given.scales, given.precision.contiguous(), given.pull.contiguous()),
        *(given.smallest, noise, means, packed, quadratics, logdets),
        summed.shape[1],
        towards.shape[1],
        D,
        BLOCK=tile.width,
        num_warps=tile.warps,
    )
    if products is not None and packed is not None and packed is not products:
        products.copy_(packed[:, : products.shape[1]])
    # A row's unknowns and the constant one, beside (v, 1, b) of the other side.
    x = torch.cat((means[:, : D - 1], means[:, D:], means[:, D - 1 : D]), 1)
    out = Outputs(losses=losses, fitted=fitted)
    residuals(axis, values, weights, ModelParts(aligned(x), others), out, None)
    losses += (quadratics - fitted).clamp_min(0)
