"""Gaussian posteriors of all rows in plain torch: any device, batches of bounded size.

The loops of `moments`, as products of batches. A side z = (v, 1, b) has means, shape (n, K + 2),
and the packed lower triangle of its second moments.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_opt.kernels.batches.padded import batches
from lowrank_opt.kernels.protocol import Given


class _Rows(NamedTuple):
    """A batch of rows: their entries, their systems and the factors of those."""

    rows: Tensor
    w: Tensor
    y: Tensor
    z: Tensor
    seconds: Tensor
    L: Tensor
    b: Tensor

    def solve(self, noise: Tensor | None = None) -> Tensor:
        half = torch.linalg.solve_triangular(self.L, self.b.unsqueeze(-1), upper=False)
        if noise is not None:
            half = half + noise.double().unsqueeze(-1)
        return torch.linalg.solve_triangular(self.L.mT, half, upper=True).squeeze(-1)

    def loss(self, x: Tensor, covariance: Tensor | None) -> Tensor:
        """Return the expected weighted squared residuals of (x, 1), with the spread of both."""
        bordered = torch.cat((x, x.new_ones(len(x), 1)), 1)
        prediction = (self.z.double() @ bordered.unsqueeze(-1)).squeeze(-1)
        w = self.w.double()
        loss = (w * (self.y.double() - prediction).square()).sum(1)
        outer = bordered.unsqueeze(2) * bordered.unsqueeze(1)
        if covariance is not None:
            outer[:, :-1, :-1] += covariance
        spread = (outer * self.seconds).sum((1, 2)) - (w * prediction.square()).sum(1)
        return loss + spread.clamp_min(0)


def posterior(
    given: Given, means: Tensor, products: Tensor, losses: Tensor, logdets: Tensor
) -> None:
    """Write the posterior of each row, as `GaussianRows.posterior`."""
    for part in _systems(given):
        x, C = part.solve(), torch.cholesky_inverse(part.L)
        losses[part.rows] = part.loss(x, C)
        logdets[part.rows] = 2 * part.L.diagonal(dim1=1, dim2=2).log().sum(1)
        first, second = _moments(x, C)
        low = torch.tril_indices(first.shape[1], first.shape[1], device=x.device)
        means[part.rows] = first.to(means.dtype)
        products[part.rows] = second[:, low[0], low[1]].to(products.dtype)


def draw(given: Given, noise: Tensor, means: Tensor, losses: Tensor) -> None:
    """Write a draw from the posterior of each row, as `GaussianRows.draw`."""
    for part in _systems(given):
        x = part.solve(noise[part.rows])
        losses[part.rows] = part.loss(x, None)
        means[part.rows] = _moments(x, None)[0].to(means.dtype)


def pack(means: Tensor, products: Tensor) -> None:
    """Write the packed ``z z^T`` of each row z of means."""
    low = torch.tril_indices(means.shape[1], means.shape[1], device=means.device)
    products[:] = means[:, low[0]] * means[:, low[1]]


def _systems(given: Given) -> Iterator[_Rows]:
    P = given.means.shape[1]
    D, low = P - 1, torch.tril_indices(P, P, device=given.means.device)
    for batch in batches(given.axis, given.products.shape[1] + P):
        rows, others = batch.rows, given.axis.indices[batch.positions].long()
        w, y = batch.gather(given.weights), given.values[batch.positions]
        z = given.means[others]
        packed = (w.unsqueeze(1) @ given.products[others]).squeeze(1).double()
        S = packed.new_zeros(len(rows), P, P)
        S[:, low[0], low[1]] = packed
        S = S + S.tril(-1).mT
        scale = given.scales[rows]
        A = scale[:, None, None] * S[:, :D, :D] + given.precision
        towards = ((w * y).unsqueeze(1) @ z).squeeze(1).double()
        # The last line of S is what the biases of the other side have in common with v and 1.
        b = scale.unsqueeze(1) * (towards[:, :D] - S[:, D, :D]) + given.pull[rows]
        yield _Rows(rows, w, y, z, S, _factor(A, given.smallest), b)


def _factor(A: Tensor, smallest: float) -> Tensor:
    """Return lower Cholesky factors; pivots below a share of their diagonal are raised to it."""
    L, info = torch.linalg.cholesky_ex(A)
    pivots = L.diagonal(dim1=1, dim2=2).square()
    floor = smallest * A.diagonal(dim1=1, dim2=2)
    lost = (info != 0) | (pivots < floor).any(1)
    return torch.where(lost[:, None, None], _floored(A, floor), L) if bool(lost.any()) else L


def _floored(A: Tensor, floor: Tensor) -> Tensor:
    L = torch.zeros_like(A)
    for p in range(A.shape[1]):
        column = A[:, p:, p] - (L[:, p:, :p] @ L[:, p, :p].unsqueeze(-1)).squeeze(-1)
        pivot = torch.maximum(column[:, 0], floor[:, p])
        L[:, p:, p] = column / pivot.sqrt().unsqueeze(1)
        L[:, p, p] = pivot.sqrt()
    return L


def _moments(x: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return means of (x_1 .. x_K, 1, x_D) and the square matrices of their second moments."""
    one = x.new_ones(len(x), 1)
    means = torch.cat((x[:, :-1], one, x[:, -1:]), 1)
    seconds = means.unsqueeze(2) * means.unsqueeze(1)
    if covariance is not None:
        D = x.shape[1]
        kept = torch.tensor([*range(D - 1), D], device=x.device)
        seconds[:, kept[:, None], kept] += covariance
    return means, seconds
