"""Least-squares problems of all rows (or columns) at once, on the threads of torch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_opt.observations import CompressedAxis, Observations

Floats = NDArray[np.floating]

_RANGES_PER_THREAD = 4
_WORTH_A_THREAD = 1 << 18


@dataclass(frozen=True, eq=False)
class RowProblems:
    """The entries of each row (or column), ready for `draw` and `improve`.

    Parameters
    ----------
    axis : CompressedAxis
    values : array, shape (nnz,)
        In the order of `axis`.
    weights : array, shape (nnz,), or None
    scratch : array, shape (nnz,)

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> rows = RowProblems.of(obs, obs.csr, np.float64)
    >>> x = np.zeros((2, 1))
    >>> rows.solve(x, np.ones((1, 1)), np.zeros(1), precision=np.eye(1), strengths=np.ones(2))
    5.0...
    >>> x.tolist()
    [[1.0], [2.0]]
    """

    axis: CompressedAxis
    values: Floats
    weights: Floats | None
    scratch: Floats

    @classmethod
    def of(
        cls, observations: Observations, axis: CompressedAxis, dtype: type[np.floating]
    ) -> RowProblems:
        """Sort values and weights by an axis of the observations, which are on the CPU."""
        values = observations.values[axis.order].numpy().astype(dtype)
        w = observations.weights
        weights = None if w is None else w[axis.order].numpy().astype(dtype)
        return cls(axis, values, weights, np.empty_like(values))

    def solve(
        self,
        x: Floats,
        features: Floats,
        offsets: Floats,
        *,
        precision: Floats,
        strengths: Floats,
        scale: float = 1.0,
        pull: Floats | None = None,
        noise: Floats | None = None,
    ) -> float:
        r"""Set row i of x to the minimiser, or with `noise` to a draw around it.

        The matrix of row i is :math:`A_i = \text{scale} \sum_k w_k f_k f_k^T + s_i P`, its
        right-hand side :math:`\text{scale} \sum_k w_k (v_k - o_k) f_k + \text{pull}_i`; a draw has
        covariance :math:`A_i^{-1}`.

        Parameters
        ----------
        x : array, shape (m, K), written
        features : array, shape (n, K)
            Of the other axis.
        offsets : array, shape (n,)
        precision : array, shape (K, K), float64
        strengths : array, shape (m,), float64
        scale : float
        pull : array, shape (m, K), optional
        noise : array, shape (m, K), optional
            Standard normal.

        Returns
        -------
        float
            Weighted sum of squared residuals at the new x; NaN if a matrix was singular.
        """
        from lowrank_opt.kernels.normal_equations import exact_pass  # loads numba

        losses = np.empty(len(x), np.float64)
        pulls = np.zeros(x.shape) if pull is None else pull
        middle = (scale, precision, strengths, pulls, noise)
        self._sweep(
            exact_pass,
            features.shape[1] ** 2,
            (features, offsets, *middle, self.scratch, x, losses),
        )
        return float(losses.sum())

    def improve(
        self,
        x: Floats,
        features: Floats,
        offsets: Floats,
        *,
        diagonal: Floats,
        strengths: Floats,
        steps: int,
    ) -> float:
        """Take conjugate gradient steps from x; as `solve` with a diagonal precision."""
        from lowrank_opt.kernels.normal_equations import conjugate_gradient_pass

        losses = np.empty(len(x), np.float64)
        parts = (features, offsets, diagonal, strengths, steps, self.scratch, x, losses)
        self._sweep(conjugate_gradient_pass, features.shape[1] * steps, parts)
        return float(losses.sum())

    def _sweep(self, kernel: Callable[..., None], work: int, parts: tuple[object, ...]) -> None:
        axis = self.axis
        arrays = (axis.pointers.numpy(), axis.indices.numpy(), self.values, self.weights)
        threads = torch.get_num_threads() if len(self.values) * work >= _WORTH_A_THREAD else 1
        if threads == 1:
            kernel(0, len(axis.pointers) - 1, *arrays, *parts)
            return
        bounds = balanced_ranges(arrays[0], threads * _RANGES_PER_THREAD)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda ends: kernel(*ends, *arrays, *parts), pairwise(bounds)))


def balanced_ranges(pointers: NDArray[np.integer], ranges: int) -> list[int]:
    """Cut groups into ranges of about equal work: entries, and a constant for each group."""
    groups = len(pointers) - 1
    work = pointers + np.arange(groups + 1) * 16
    inner = np.searchsorted(work, np.linspace(0, work[-1], ranges + 1)[1:-1])
    return [0, *inner.tolist(), groups]
