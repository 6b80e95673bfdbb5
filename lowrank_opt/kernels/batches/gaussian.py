"""Gaussian posteriors of all rows in plain torch: any device, blocks of rows of bounded size.

The loops of `moments`, as sums over bags of vectors and as batches of small matrices. A side
z = (v, 1, b) has means, shape (n, K + 2), and the packed lower triangle of its second moments.
A row is summed in one order, whatever the number of threads and whichever rows are beside it.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lowrank_opt.kernels.batches.padded import BLOCK, batches
from lowrank_opt.kernels.protocol import Given
from lowrank_opt.observations import CompressedAxis

# Numbers of the matrices of a block on the CPU, where a dozen of such arrays stay in the cache.
CACHED = 1 << 18
# A sum of squares this small beside its terms is mostly rounding, and summed entry by entry.
_CANCELLED = 1e-2


class _Rows(NamedTuple):
    """A block of rows: their entries, their systems and the factors of those."""

    rows: slice
    counts: Tensor
    z: Tensor
    others: Tensor
    w: Tensor
    y: Tensor
    energy: Tensor
    towards: Tensor
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
        S = self.seconds
        quadratic = (bordered * (S @ bordered.unsqueeze(2)).squeeze(2)).sum(1)
        if covariance is not None:
            quadratic += (covariance * S[:, :-1, :-1]).sum((1, 2))
        loss = self.energy - 2 * (bordered * self.towards).sum(1) + quadratic
        cancelled = loss < _CANCELLED * self.energy
        if bool(cancelled.any()):
            squares, fitted = self._of_entries(cancelled, bordered[cancelled])
            loss[cancelled] = squares + (quadratic[cancelled] - fitted).clamp_min(0)
        return loss

    def _of_entries(self, chosen: Tensor, bordered: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sum w (y - x z)^2`` and ``sum w (x z)^2`` of some rows."""
        entries, counts = chosen.repeat_interleave(self.counts), self.counts[chosen]
        owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        prediction = (self.z[self.others[entries]] * bordered[owners]).sum(1)
        w, residual = self.w[entries].double(), self.y[entries] - prediction
        return _sums(w * residual.square(), counts), _sums(w * prediction.square(), counts)


def posterior(
    given: Given, means: Tensor, products: Tensor, losses: Tensor, logdets: Tensor
) -> None:
    """Write the posterior of each row, as `GaussianRows.posterior`."""
    for part in _systems(given):
        x, C = part.solve(), torch.cholesky_inverse(part.L)
        losses[part.rows] = part.loss(x, C)
        logdets[part.rows] = 2 * part.L.diagonal(dim1=1, dim2=2).log().sum(1)
        z = means[part.rows] = _with_one(x).to(means.dtype)
        products[part.rows] = _second_moments(z, C.to(means.dtype))


def draw(given: Given, noise: Tensor, means: Tensor, losses: Tensor) -> None:
    """Write a draw from the posterior of each row, as `GaussianRows.draw`."""
    for part in _systems(given):
        x = part.solve(noise[part.rows])
        losses[part.rows] = part.loss(x, None)
        means[part.rows] = _with_one(x)


def pack(means: Tensor, products: Tensor) -> None:
    """Write the packed ``z z^T`` of each row z of means."""
    low = torch.tril_indices(means.shape[1], means.shape[1], device=means.device)
    products[:] = means[:, low[0]] * means[:, low[1]]


def _systems(given: Given) -> Iterator[_Rows]:
    P = given.means.shape[1]
    D, square = P - 1, _square(P, given.means.device)
    pointers, indices = given.axis.pointers, given.axis.indices
    most = CACHED if pointers.device.type == "cpu" else BLOCK
    for first, last in pairwise(_cuts(pointers.cpu(), P, most)):
        rows, ends = slice(first, last), pointers[first : last + 1]
        entries = slice(int(ends[0]), int(ends[-1]))
        others, w, y = indices[entries], given.weights[entries], given.values[entries]
        starts, counts = (ends - ends[0]).to(others), ends.diff()
        packed = _bags(given.products, others, starts, w)
        S = packed.index_select(1, square).double().unflatten(1, (P, P))
        scale = given.scales[rows]
        A = torch.addcmul(given.precision, scale[:, None, None], S[:, :D, :D])
        towards = _bags(given.means, others, starts, w * y).double()
        # The last line of S is what the biases of the other side have in common with v and 1.
        b = scale.unsqueeze(1) * (towards[:, :D] - S[:, D, :D]) + given.pull[rows]
        energy = _sums(w.double() * y * y, counts)
        data = (rows, counts, given.means, others, w, y, energy, towards, S)
        yield _Rows(*data, _factor(A, given.smallest), b)


def _cuts(pointers: Tensor, width: int, most: int) -> list[int]:
    """Return the ends of blocks: `BLOCK` numbers of entries, `most` of matrices; or one row."""
    ends, groups = [0], len(pointers) - 1
    while ends[-1] < groups:
        first = ends[-1]
        full = int(torch.searchsorted(pointers, pointers[first] + BLOCK // width, right=True)) - 1
        ends.append(max(first + 1, min(full, first + most // width**2, groups)))
    return ends


def _bags(vectors: Tensor, others: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_k weights[k] vectors[others[k]]`` over the entries of each row."""
    if vectors.device.type == "cpu":
        bags = partial(embedding_bag, mode="sum", include_last_offset=True)
        return bags(others, vectors, starts, per_sample_weights=weights)
    return _padded_bags(vectors, others, starts, weights)


def _padded_bags(vectors: Tensor, others: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Do what `_bags` does where one thread would be too slow for a long row."""
    sums = vectors.new_empty(len(starts) - 1, vectors.shape[1])
    axis = CompressedAxis(starts.long(), others, others)
    for batch in batches(axis, vectors.shape[1]):
        w = batch.gather(weights).unsqueeze(1)
        sums[batch.rows] = (w @ vectors[others[batch.positions]]).squeeze(1)
    return sums


def _sums(x: Tensor, counts: Tensor) -> Tensor:
    return torch.segment_reduce(x, "sum", lengths=counts, initial=0)


def _square(size: int, device: torch.device) -> Tensor:
    """Return where each entry of a symmetric matrix is in its packed lower triangle."""
    p = torch.arange(size, device=device)
    high, low = torch.maximum(p[:, None], p), torch.minimum(p[:, None], p)
    return (high * (high + 1) // 2 + low).flatten()


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


def _with_one(x: Tensor) -> Tensor:
    """Return (x_1 .. x_K, 1, x_D), where D = K + 1."""
    return torch.cat((x[:, :-1], x.new_ones(len(x), 1), x[:, -1:]), 1)


def _second_moments(z: Tensor, covariance: Tensor) -> Tensor:
    """Return the packed second moments of (x_1 .. x_K, 1, x_D), where the covariance is of x."""
    D = covariance.shape[1]
    # Where the covariance of two of them is; that of the constant one is the zero at the end.
    place = torch.full((D + 1, D + 1), D * D, device=z.device)
    kept = torch.tensor([*range(D - 1), D], device=z.device)
    place[kept[:, None], kept] = torch.arange(D * D, device=z.device).unflatten(0, (D, D))
    p, q = torch.tril_indices(D + 1, D + 1, device=z.device)
    spread = torch.cat((covariance.flatten(1), z.new_zeros(len(z), 1)), 1)
    packed = spread.index_select(1, place[p, q])
    return packed.addcmul_(z.index_select(1, p), z.index_select(1, q))
