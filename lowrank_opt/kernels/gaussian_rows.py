"""Gaussian posteriors of all rows (or columns) at once, on the threads of torch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.kernels.row_solves import balanced_ranges
from lowrank_opt.observations import CompressedAxis, Observations

Floats = NDArray[np.floating]

_RANGES_PER_THREAD = 4
_WORTH_A_THREAD = 1 << 20


@dataclass(frozen=True, eq=False)
class Moments:
    """Means of (v, 1, b) for each row of a side, and its packed second moments.

    Parameters
    ----------
    means : array, shape (n, K + 2)
        Factors, the constant one, and the bias.
    products : array, shape (n, (K + 2)(K + 3) / 2)
        The lower triangle of the expected outer product, row after row.

    Examples
    --------
    >>> side = Moments.of(np.array([[2.0, 3.0]]), np.array([0.5]))
    >>> side.means.tolist(), side.products.shape
    ([[2.0, 3.0, 1.0, 0.5]], (1, 10))
    """

    means: Floats
    products: Floats

    @classmethod
    def of(cls, factors: Floats, bias: Floats) -> Moments:
        """Return the moments of numbers that are certain."""
        n, K = factors.shape
        means = np.ones((n, K + 2), factors.dtype)
        means[:, :K], means[:, -1] = factors, bias
        moments = cls(means, np.empty((n, (K + 2) * (K + 3) // 2), factors.dtype))
        moments.repack()
        return moments

    @property
    def unknowns(self) -> Floats:
        """Factors and bias alone, a copy, shape (n, K + 1)."""
        return np.delete(self.means, -2, axis=1)

    def repack(self) -> None:
        """Set the second moments to those of the means without spread."""
        from lowrank_opt.kernels.moments import pack_moments

        pack_moments(self.means, self.products)

    def total(self) -> Floats:
        """Return the sum over rows of the second moments of (v, b), float64, (K + 1, K + 1)."""
        size = self.means.shape[1]
        square = np.zeros((size, size))
        square[np.tril_indices(size)] = self.products.sum(axis=0, dtype=np.float64)
        square += np.tril(square, -1).T
        kept = np.delete(np.arange(size), -2)
        return square[np.ix_(kept, kept)]


@dataclass(frozen=True, eq=False)
class GaussianRows:
    """The entries of each row (or column), with a relative precision for each.

    Parameters
    ----------
    axis : CompressedAxis
    values : array, shape (nnz,)
        In the order of `axis`.
    weights : array, shape (nnz,)

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> rows = GaussianRows.of(obs, obs.csr, np.float64)
    >>> other, own = (
    ...     Moments.of(np.ones((1, 1)), np.zeros(1)),
    ...     Moments.of(np.zeros((2, 1)), np.zeros(2)),
    ... )
    >>> prior = {"precision": np.diag([1.0, 1e9]), "pull": np.zeros((2, 2))}
    >>> losses, _ = rows.posterior(own, other, scales=np.ones(2), **prior)
    >>> own.means[:, 0].round(6).tolist(), losses.round(6).tolist()
    ([1.0, 2.0], [1.5, 4.5])
    """

    axis: CompressedAxis
    values: Floats
    weights: Floats

    @classmethod
    def of(
        cls, observations: Observations, axis: CompressedAxis, dtype: type[np.floating]
    ) -> GaussianRows:
        """Sort values and weights by an axis of the observations, which are on the CPU."""
        values = observations.values[axis.order].numpy().astype(dtype)
        w = observations.weights
        weights = np.ones_like(values) if w is None else w[axis.order].numpy().astype(dtype)
        return cls(axis, values, weights)

    @property
    def counts(self) -> NDArray[np.integer]:
        """Number of entries of each row."""
        return np.diff(self.axis.pointers.numpy())

    @property
    def positive_counts(self) -> NDArray[np.integer]:
        """Number of entries of positive weight in each row."""
        groups = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.bincount(groups[self.weights > 0], minlength=len(self.counts))

    def posterior(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Floats,
        precision: Floats,
        pull: Floats,
        multipliers: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        r"""Set `own` to the moments of the posterior of each row, given those of the other side.

        The matrix of row i is :math:`s_i \sum_k w_k m_k E[f_k f_k^T] + P`, its right-hand side
        :math:`s_i \sum_k w_k m_k (y_k E[f_k] - E[b_k f_k]) + \text{pull}_i` with
        :math:`f = (v, 1)` and multipliers m of the other side.

        Parameters
        ----------
        own : Moments, written
        other : Moments
        scales : array, shape (m,), float64
        precision : array, shape (K + 1, K + 1), float64
        pull : array, shape (m, K + 1), float64
        multipliers : array, shape (n,), optional

        Returns
        -------
        losses : array, shape (m,)
            Expected weighted sum of squared residuals of each row.
        logdets : array, shape (m,)
            Log determinant of each matrix.
        """
        from lowrank_opt.kernels.moments import posterior_pass  # loads numba

        losses, logdets = np.empty(len(own.means)), np.empty(len(own.means))
        given = self._given(other, multipliers, scales, precision, pull)
        self._sweep(posterior_pass, (*given, own.means, own.products, losses, logdets))
        return losses, logdets

    def draw(
        self,
        own: Moments,
        other: Moments,
        *,
        scales: Floats,
        precision: Floats,
        pull: Floats,
        noise: Floats,
        multipliers: Floats | None = None,
    ) -> Floats:
        """Set `own` to a draw from the posterior of each row; return the losses.

        Parameters
        ----------
        noise : array, shape (m, K + 1)
            Standard normal.
        """
        from lowrank_opt.kernels.moments import draw_pass

        losses = np.empty(len(own.means))
        given = self._given(other, multipliers, scales, precision, pull)
        self._sweep(draw_pass, (*given, noise, own.means, losses))
        own.repack()
        return losses

    def _given(
        self, other: Moments, multipliers: Floats | None, *rest: object
    ) -> tuple[object, ...]:
        weights = self.weights
        if multipliers is not None:
            weights = weights * multipliers.astype(weights.dtype)[self.axis.indices.numpy()]
        # A Gram matrix is known to the rounding of its sum.
        smallest = 8 * float(np.finfo(weights.dtype).eps)
        return (self.values, weights, other.means, other.products, *rest, smallest)

    def _sweep(self, kernel: Callable[..., None], parts: tuple[object, ...]) -> None:
        pointers, indices = self.axis.pointers.numpy(), self.axis.indices.numpy()
        products = parts[3]
        assert isinstance(products, np.ndarray)
        work = len(self.values) * products.shape[1]
        threads = torch.get_num_threads() if work >= _WORTH_A_THREAD else 1
        if threads == 1:
            kernel(0, len(pointers) - 1, pointers, indices, *parts)
            return
        bounds = balanced_ranges(pointers, threads * _RANGES_PER_THREAD)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda ends: kernel(*ends, pointers, indices, *parts), pairwise(bounds)))
