"""Gaussian noise on the mean of clients, and low-rank matrices near the noisy mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.operator import LowRankOperator

# Rows of noise are drawn in blocks of at most this many numbers, and at most an eighth of them.
_BLOCK = 1 << 20
# Subspace iteration: columns beyond the rank, and rounds of two passes.
_OVERSAMPLING, _ROUNDS = 8, 3


@dataclass(frozen=True, eq=False)
class NoisyMean:
    """``mean + sigma N``, with N drawn anew from one state of a generator at every pass.

    Parameters
    ----------
    mean : LowRankOperator, m x n
        In float64.
    sigma : float
    generator : torch.Generator
        After each pass it has gone past N.
    state : Tensor
        Of the generator, from which N is drawn. A seed would not do: it has 32 bits.
    """

    mean: LowRankOperator
    sigma: float
    generator: torch.Generator
    state: Tensor

    def __matmul__(self, x: Tensor) -> Tensor:
        """Return the product with x of shape (n, k)."""
        return torch.cat([block @ x for _, block in self._blocks()])

    def transposed(self, y: Tensor) -> Tensor:
        """Return the transpose times y of shape (m, k)."""
        product = y.new_zeros(self.mean.shape[1], y.shape[1])
        for rows, block in self._blocks():
            product += block.mT @ y[rows]
        return product

    def to_dense(self) -> Tensor:
        """Return the m x n matrix."""
        return torch.cat([block for _, block in self._blocks()])

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of the noisy mean, as they would be published."""
        (m, n), (left, scale, right) = self.mean.shape, self.mean
        height = max(1, min(m // 8, _BLOCK // n))
        self.generator.set_state(self.state)
        for start in range(0, m, height):
            rows = slice(start, min(start + height, m))
            noise = gaussian((rows.stop - start, n), self.mean, self.generator)
            yield rows, (left[rows] * scale) @ right.mT + self.sigma * noise


def gaussian(shape: tuple[int, int], like: LowRankOperator, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers in the dtype and on the device of an operator."""
    drawn = torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator)
    return drawn.to(like.device)


def noisy_mean(mean: LowRankOperator, sigma: float, generator: torch.Generator) -> NoisyMean:
    """Return the noisy mean whose noise starts at the generator's present state."""
    return NoisyMean(mean, sigma, generator, generator.get_state())


def best_of_rank_dense(
    mean: LowRankOperator, sigma: float, rank: int, generator: torch.Generator
) -> LowRankOperator:
    """Return the truncated SVD of the noisy mean, which is formed."""
    noisy = noisy_mean(mean, sigma, generator).to_dense()
    return LowRankOperator.from_dense(noisy, rank)


def near_best_of_rank(
    mean: LowRankOperator, sigma: float, rank: int, generator: torch.Generator
) -> LowRankOperator:
    """Return nearly the truncated SVD of the noisy mean, in passes over its regenerated rows.

    Subspace iteration from random columns that are drawn before the noise (Halko, Martinsson and
    Tropp, 2011, algorithm 4.4). It reads the noisy mean only, hence is as private as that,
    converged or not.
    """
    m, n = mean.shape
    columns = min(rank + _OVERSAMPLING, m, n)
    start = gaussian((n, columns), mean, generator)
    noisy = noisy_mean(mean, sigma, generator)
    Q = torch.linalg.qr(noisy @ start).Q
    for _ in range(_ROUNDS):
        Q = torch.linalg.qr(noisy @ torch.linalg.qr(noisy.transposed(Q)).Q).Q
    V, values, Uh = torch.linalg.svd(noisy.transposed(Q), full_matrices=False)
    return LowRankOperator(Q @ Uh.mT[:, :rank], values[:rank], V[:, :rank])


def with_noise_in_columns(
    left: Tensor, scale: Tensor, right: Tensor, sigma: float, generator: torch.Generator
) -> LowRankOperator:
    r"""Return :math:`L S R^T` plus noise in an orthonormal basis of its row space.

    With :math:`R S = Q T` the matrix is :math:`(L T^T) Q^T`: noise of standard deviation sigma on
    :math:`C = L T^T`, of m r numbers, has the same meaning for W as on W itself, since
    :math:`\|C\|_F = \|W\|_F`. The result is written with the given `right` again.
    """
    _, T = torch.linalg.qr(right * scale)
    like = LowRankOperator(left, scale, right)
    C = left @ T.mT
    C = C + sigma * gaussian((C.shape[0], C.shape[1]), like, generator)
    return LowRankOperator(C @ torch.linalg.pinv(T.mT), scale, right)
