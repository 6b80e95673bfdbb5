"""Gaussian posteriors of all rows (or columns) at once, on the device of the entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import Given
from lowrank_opt.observations import CompressedAxis, Observations


@dataclass(frozen=True, eq=False)
class Moments:
    """Means of (v, 1, b) for each row of a side, and its packed second moments.

    Parameters
    ----------
    means : Tensor, shape (n, K + 2)
        Factors, the constant one, and the bias.
    products : Tensor, shape (n, (K + 2)(K + 3) / 2)
        The lower triangle of the expected outer product, row after row.

    Examples
    --------
    >>> side = Moments.of(torch.tensor([[2.0, 3.0]]), torch.tensor([0.5]))
    >>> side.means.tolist(), tuple(side.products.shape)
    ([[2.0, 3.0, 1.0, 0.5]], (1, 10))
    """

    means: Tensor
    products: Tensor

    @classmethod
    def of(cls, factors: Tensor, bias: Tensor) -> Moments:
        """Return the moments of numbers that are certain."""
        n, K = factors.shape
        means = torch.cat((factors, factors.new_ones(n, 1), bias.unsqueeze(1)), 1)
        moments = cls(means, factors.new_empty(n, (K + 2) * (K + 3) // 2))
        moments.repack()
        return moments

    @property
    def unknowns(self) -> Tensor:
        """Factors and bias alone, a copy, shape (n, K + 1)."""
        return torch.cat((self.means[:, :-2], self.means[:, -1:]), 1)

    def repack(self) -> None:
        """Set the second moments to those of the means without spread."""
        backend_of(self.means.device).pack(self.means, self.products)

    def total(self) -> Tensor:
        """Return the sum over rows of the second moments of (v, b), float64, (K + 1, K + 1)."""
        size, device = self.means.shape[1], self.means.device
        square = torch.zeros(size, size, dtype=torch.float64, device=device)
        low = torch.tril_indices(size, size, device=device)
        square[low[0], low[1]] = self.products.sum(0, dtype=torch.float64)
        square = square + square.tril(-1).mT
        kept = torch.tensor([*range(size - 2), size - 1], device=device)
        return square[kept[:, None], kept]


@dataclass(frozen=True, eq=False)
class GaussianRows:
    """The entries of each row (or column), with a relative precision for each.

    Parameters
    ----------
    axis : CompressedAxis
    values : Tensor, shape (nnz,)
        In the order of `axis`.
    weights : Tensor, shape (nnz,)

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> rows = GaussianRows.of(obs, obs.csr, torch.float64)
    >>> zeros, ones = torch.zeros(2, 2).double(), torch.ones(2, 1).double()
    >>> other, own = Moments.of(ones[:1], zeros[0, :1]), Moments.of(0 * ones, zeros[0])
    >>> prior = {"precision": torch.tensor([1.0, 1e9]).diag().double(), "pull": zeros}
    >>> losses, _ = rows.posterior(own, other, scales=ones[:, 0], **prior)
    >>> own.means[:, 0].tolist(), losses.tolist()
    ([1.0, 2.0], [1.5, 4.5])
    """

    axis: CompressedAxis
    values: Tensor
    weights: Tensor

    @classmethod
    def of(
        cls, observations: Observations, axis: CompressedAxis, dtype: torch.dtype
    ) -> GaussianRows:
        """Sort values and weights by an axis of the observations."""
        values = observations.values[axis.order].to(dtype)
        w = observations.weights
        # One number stands for all ones: products with multipliers have room of their own.
        ones = values.new_ones(1).expand(len(values))
        return cls(axis, values, ones if w is None else w[axis.order].to(dtype))

    @property
    def positive_counts(self) -> Tensor:
        """Number of entries of positive weight in each row, int64."""
        counts, positive = self.axis.counts, self.weights > 0
        if bool(positive.all()):
            return counts
        groups = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return torch.bincount(groups[positive], minlength=len(counts))

    def posterior(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Tensor,
        precision: Tensor,
        pull: Tensor,
        multipliers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Set `own` to the moments of the posterior of each row, given those of the other side.

        The matrix of row i is :math:`s_i \sum_k w_k m_k E[f_k f_k^T] + P`, its right-hand side
        :math:`s_i \sum_k w_k m_k (y_k E[f_k] - E[b_k f_k]) + \text{pull}_i` with
        :math:`f = (v, 1)` and multipliers m of the other side.

        Parameters
        ----------
        own : Moments, written
        other : Moments
        scales : Tensor, shape (m,), float64
        precision : Tensor, shape (K + 1, K + 1), float64
        pull : Tensor, shape (m, K + 1), float64
        multipliers : Tensor, shape (n,), optional

        Returns
        -------
        losses : Tensor, shape (m,), float64
            Expected weighted sum of squared residuals of each row.
        logdets : Tensor, shape (m,), float64
            Log determinant of each matrix.
        """
        losses = scales.new_empty(len(own.means), dtype=torch.float64)
        logdets = torch.empty_like(losses)
        given = self._given(other, multipliers, scales, precision, pull)
        backend = backend_of(losses.device)
        backend.posterior(given, own.means, own.products, losses, logdets)
        return losses, logdets

    def draw(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Tensor,
        precision: Tensor,
        pull: Tensor,
        noise: Tensor,
        multipliers: Tensor | None = None,
    ) -> Tensor:
        """Set `own` to a draw from the posterior of each row; return the losses.

        Parameters
        ----------
        noise : Tensor, shape (m, K + 1)
            Standard normal.
        """
        losses = scales.new_empty(len(own.means), dtype=torch.float64)
        given = self._given(other, multipliers, scales, precision, pull)
        backend_of(losses.device).draw(given, noise, own.means, losses)
        own.repack()
        return losses

    def _given(
        self,
        other: Moments,
        multipliers: Tensor | None,
        scales: Tensor,
        precision: Tensor,
        pull: Tensor,
    ) -> Given:
        weights = self.weights.contiguous() if multipliers is None else self.weights
        if multipliers is not None:
            weights = weights * multipliers.to(weights.dtype)[self.axis.indices]
        # A Gram matrix is known to the rounding of its sum.
        smallest = 8 * float(torch.finfo(weights.dtype).eps)
        data = (self.axis, self.values, weights, other.means, other.products)
        return Given(*data, scales, precision, pull, smallest)
