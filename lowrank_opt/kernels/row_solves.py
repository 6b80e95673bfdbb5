"""Least-squares problems of all rows (or columns) at once, on the device of the entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.kernels.backend import backend_of
from lowrank_opt.kernels.protocol import RowEntries
from lowrank_opt.observations import CompressedAxis, Observations


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
        losses = backend_of(x.device).solve_rows(
            RowEntries(self.axis, self.values, self.weights),
            x,
            features,
            offsets,
            scale=scale,
            precision=precision,
            strengths=strengths,
            pull=pull,
            noise=noise,
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
        entries = RowEntries(self.axis, self.values, self.weights)
        settings = {"diagonal": diagonal, "strengths": strengths}
        backend = backend_of(x.device)
        losses = backend.improve_rows(entries, x, features, offsets, **settings, steps=steps)
        return float(losses.sum())

    def solve_nonnegative(
        self,
        x: Tensor,
        features: Tensor,
        offsets: Tensor,
        *,
        diagonal: Tensor,
        strengths: Tensor,
        free: int,
    ) -> float:
        """Minimise over rows that are nonnegative but for the last `free` columns; as `improve`.

        By coordinate descent in float64 from x, until none moves by more than 1e-13 of the largest.
        """
        entries = RowEntries(self.axis, self.values, self.weights)
        settings = {"diagonal": diagonal, "strengths": strengths}
        backend = backend_of(x.device)
        losses = backend.nonnegative_rows(entries, x, features, offsets, **settings, free=free)
        return float(losses.sum())
