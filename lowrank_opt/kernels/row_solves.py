"""Least-squares problems of all rows (or columns) at once.

On the CPU numba loops do it on the threads of torch; elsewhere, batches in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.dispatch import on_cpu_loops
from lowrank_opt.kernels.torch_rows import improve_rows, solve_rows
from lowrank_opt.observations import CompressedAxis, Observations

_RANGES_PER_THREAD = 4
_WORTH_A_THREAD = 1 << 18


@dataclass(frozen=True, eq=False)
class RowProblems:
    """The entries of each row (or column), ready for `solve` and `improve`.

    All tensors are on one device.

    Parameters
    ----------
    axis : CompressedAxis
    values : Tensor, shape (nnz,)
        In the order of `axis`.
    weights : Tensor, shape (nnz,), or None

    Examples
    --------
    >>> obs = Observations([0, 1], [0, 0], [2.0, 4.0], shape=(2, 1))
    >>> rows = RowProblems.of(obs, obs.csr, torch.float64)
    >>> x, one = torch.zeros(2, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    >>> rows.solve(x, one, 0 * one[0], precision=one, strengths=one.new_ones(2))
    5.0...
    >>> x.tolist()
    [[1.0], [2.0]]
    """

    axis: CompressedAxis
    values: Tensor
    weights: Tensor | None

    @classmethod
    def of(
        cls, observations: Observations, axis: CompressedAxis, dtype: torch.dtype
    ) -> RowProblems:
        """Sort values and weights by an axis of the observations."""
        w = observations.weights
        weights = None if w is None else w[axis.order].to(dtype)
        return cls(axis, observations.values[axis.order].to(dtype), weights)

    @cached_property
    def scratch(self) -> Tensor:
        """Room for a number for each entry."""
        return torch.empty_like(self.values)

    def solve(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        precision: Tensor,
        strengths: Tensor,
        scale: float = 1.0,
        pull: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> float:
        r"""Set row i of x to the minimiser, or with `noise` to a draw around it.

        The matrix of row i is :math:`A_i = \text{scale} \sum_k w_k f_k f_k^T + s_i P`, its
        right-hand side :math:`\text{scale} \sum_k w_k (v_k - o_k) f_k + \text{pull}_i`; a draw has
        covariance :math:`A_i^{-1}`.

        Parameters
        ----------
        x : Tensor, shape (m, K), written
        features : Tensor, shape (n, K)
            Of the other axis.
        offsets : Tensor, shape (n,)
        precision : Tensor, shape (K, K), float64
        strengths : Tensor, shape (m,), float64
        scale : float
        pull : Tensor, shape (m, K), optional
        noise : Tensor, shape (m, K), optional
            Standard normal.

        Returns
        -------
        float
            Weighted sum of squared residuals at the new x; NaN if a matrix was singular.
        """
        data = (self.axis, self.values, self.weights, x, features, offsets)
        if not on_cpu_loops(x.device.type):
            losses = solve_rows(
                *data,
                scale=scale,
                precision=precision,
                strengths=strengths,
                pull=pull,
                noise=noise,
            )
            return float(losses.sum())
        from lowrank_opt.kernels.normal_equations import exact_pass  # loads numba

        losses = x.new_empty(len(x), dtype=torch.float64)
        pulls = x.new_zeros(x.shape) if pull is None else pull
        middle = (scale, precision, strengths, pulls, noise)
        self._sweep(
            exact_pass,
            features.shape[1] ** 2,
            (features, offsets, *middle, self.scratch, x, losses),
        )
        return float(losses.sum())

    def improve(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        steps: int,
    ) -> float:
        """Take conjugate gradient steps from x; as `solve` with a diagonal precision."""
        data = (self.axis, self.values, self.weights, x, features, offsets)
        if not on_cpu_loops(x.device.type):
            losses = improve_rows(*data, diagonal=diagonal, strengths=strengths, steps=steps)
            return float(losses.sum())
        from lowrank_opt.kernels.normal_equations import conjugate_gradient_pass

        losses = x.new_empty(len(x), dtype=torch.float64)
        parts = (features, offsets, diagonal, strengths, steps, self.scratch, x, losses)
        self._sweep(conjugate_gradient_pass, features.shape[1] * steps, parts)
        return float(losses.sum())

    def _sweep(self, kernel: Callable[..., None], work: int, parts: tuple[object, ...]) -> None:
        axis = self.axis
        data = (axis.pointers, axis.indices, self.values, self.weights, *parts)
        arrays = [x.numpy() if isinstance(x, Tensor) else x for x in data]
        threads = torch.get_num_threads() if len(self.values) * work >= _WORTH_A_THREAD else 1
        if threads == 1:
            kernel(0, len(axis.pointers) - 1, *arrays)
            return
        bounds = balanced_ranges(axis.pointers.numpy(), threads * _RANGES_PER_THREAD)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda ends: kernel(*ends, *arrays), pairwise(bounds)))


def balanced_ranges(pointers: NDArray[np.integer], ranges: int) -> list[int]:
    """Cut groups into ranges of about equal work: entries, and a constant for each group."""
    groups = len(pointers) - 1
    work = pointers + np.arange(groups + 1) * 16
    inner = np.searchsorted(work, np.linspace(0, work[-1], ranges + 1)[1:-1])
    return [0, *inner.tolist(), groups]
