"""The additive part of a prediction: a mean, and one number for each row and column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.observations import CompressedAxis, Observations

# Each sweep contracts the error by about the share of a row's entries that one column holds.
_SWEEPS = 20


@dataclass(frozen=True, eq=False)
class AdditiveBias:
    """Predicts ``mean + rows[i] + cols[j]``.

    Parameters
    ----------
    mean : float
    rows : Tensor, shape (m,)
    cols : Tensor, shape (n,)
        Zero for a row or column that was never seen.

    Examples
    --------
    >>> bias = AdditiveBias(3.0, torch.tensor([0.5, 0.0]), torch.tensor([0.25]))
    >>> bias.predict(torch.tensor([0, 1]), torch.tensor([0, 0]))
    tensor([3.7500, 3.2500])
    """

    mean: float
    rows: Tensor
    cols: Tensor

    def predict(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the prediction for index tensors of one shape."""
        return self.mean + self.rows[rows] + self.cols[cols]

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> AdditiveBias:
        """Return a copy with another dtype or device."""
        rows, cols = (x.to(device=device, dtype=dtype) for x in (self.rows, self.cols))
        return AdditiveBias(self.mean, rows, cols)


def no_bias(observations: Observations) -> AdditiveBias:
    """Return the bias that predicts zero."""
    m, n = observations.shape
    values = observations.values
    return AdditiveBias(0.0, values.new_zeros(m), values.new_zeros(n))


def weighted_mean(observations: Observations) -> float:
    """Return the mean of the values, weighted, in float64."""
    values = observations.values.double()
    if observations.weights is None:
        return float(values.mean())
    weights = observations.weights.double()
    return float(torch.dot(weights, values) / weights.sum())


def fit_additive_bias(observations: Observations, *, penalty: float) -> AdditiveBias:
    r"""Fit the biases alone by alternating ridge regressions.

    Minimises :math:`\sum_k w_k (v_k - \mu - a_{i_k} - b_{j_k})^2 + \text{penalty}\,
    (\|a\|^2 + \|b\|^2)` approximately, in float64; :math:`\mu` is the weighted mean.

    Parameters
    ----------
    observations : Observations
    penalty : float
        Nonnegative; counts like that many entries of value zero in each row and column.

    Returns
    -------
    AdditiveBias
        In the dtype of the values.

    Examples
    --------
    >>> obs = Observations.from_dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> fit_additive_bias(obs, penalty=0.0).rows
    tensor([-1.,  1.])
    """
    mean = weighted_mean(observations)
    values = observations.values.double() - mean
    w = observations.weights
    weights = torch.ones_like(values) if w is None else w.double()
    m, n = observations.shape
    a, b = values.new_zeros(m), values.new_zeros(n)
    by_rows = _Ridge(observations.csr, weights, penalty)
    by_cols = _Ridge(observations.csc, weights, penalty)
    for _ in range(_SWEEPS):
        b = by_cols.solve(values - a[observations.rows])
        a = by_rows.solve(values - b[observations.cols])
    dtype = observations.dtype
    return AdditiveBias(mean, a.to(dtype), b.to(dtype))


class _Ridge:
    """Means over the groups of an axis, shrunk towards zero."""

    def __init__(self, axis: CompressedAxis, weights: Tensor, penalty: float) -> None:
        self.axis = axis
        self.weights = weights[axis.order]
        mass = self._sums(self.weights) + penalty
        self.inverse = torch.where(mass > 0, 1 / mass, 0.0)

    def solve(self, residuals: Tensor) -> Tensor:
        return self._sums(self.weights * residuals[self.axis.order]) * self.inverse

    def _sums(self, x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "sum", lengths=self.axis.counts, unsafe=True)
