"""The additive part of a prediction: a mean, and one number for each row and column."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError
from lowrank_opt.kernels import observed_squared_loss
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import held_shape, is_cut, over_lines, total
from lowrank_opt.operator import LowRankOperator

_TOLERANCE = 1e-10
_MAX_STEPS = 500


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
    m, n = held_shape(observations)
    values = observations.values
    return AdditiveBias(0.0, values.new_zeros(m), values.new_zeros(n))


def weighted_mean(observations: Observations) -> float:
    """Return the mean of the values, weighted, in float64."""
    values, w = observations.values.double(), observations.weights
    if observations.part is not None:
        mass = torch.ones_like(values) if w is None else w.double()
        return float(total(observations, mass * values) / total(observations, mass))
    if w is None:
        return float(values.mean())
    return float(torch.dot(w.double(), values) / w.double().sum())


def fit_additive_bias(observations: Observations, *, penalty: float) -> AdditiveBias:
    r"""Fit the biases alone, a ridge regression solved by conjugate gradients.

    Minimises :math:`\sum_k w_k (v_k - \mu - a_{i_k} - b_{j_k})^2 + \text{penalty}\,
    (\|a\|^2 + \|b\|^2)` in float64, to a relative residual of 1e-10; :math:`\mu` is the weighted
    mean.

    Parameters
    ----------
    observations : Observations
    penalty : float
        Nonnegative; counts like that many entries of value zero in each row and column.

    Returns
    -------
    AdditiveBias
        In the dtype of the values.

    Raises
    ------
    OptionError
        If the penalty is negative or not finite.

    References
    ----------
    Jacobi-preconditioned conjugate gradients: Saad, Iterative Methods for Sparse Linear Systems
    (2003), algorithm 9.1.

    Examples
    --------
    >>> obs = Observations.from_dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> fit_additive_bias(obs, penalty=0.0).rows
    tensor([-1.,  1.])
    """
    if not (math.isfinite(penalty) and penalty >= 0):
        raise OptionError(
            f"penalty must be finite and nonnegative; got penalty={penalty!r}: for no biases at "
            "all use no_bias"
        )
    mean = weighted_mean(observations)
    model = _AdditiveModel(observations, penalty)
    a, b = model.solve(observations.values.double() - mean)
    return AdditiveBias(mean, a.to(observations.dtype), b.to(observations.dtype))


class _AdditiveModel:
    """The normal equations of the additive model, with one unknown for each row and column."""

    def __init__(self, observations: Observations, penalty: float) -> None:
        m, n = held_shape(observations)
        self.observations = observations
        self.sizes, self.penalty = (m, n), penalty
        zeros = torch.zeros_like(observations.values, dtype=torch.float64)
        self.homogeneous = observations.to(dtype=torch.float64).with_values(zeros)
        ones = zeros.new_ones(m + n)
        mass = torch.stack([self._gradient(part) for part in _halves(ones, m)]).T
        self.diagonal = torch.cat((mass[:m, 0], mass[m:, 1])) + penalty

    def solve(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row and column biases that fit `values`."""
        x = torch.zeros_like(self.diagonal)
        r = -self._gradient(x, self.homogeneous.with_values(values))
        # As many numbers as entries, of no use from here on.
        del values
        inverse = torch.where(self.diagonal > 0, 1 / self.diagonal, 0.0)
        z, target = inverse * r, _TOLERANCE * self._norm(r)
        p, rz = z, self._dot(r, z)
        for _ in range(_MAX_STEPS):
            if self._norm(r) <= target:
                break
            q = self._gradient(p) + self.penalty * p
            alpha = rz / self._dot(p, q)
            x, r = x + alpha * p, r - alpha * q
            z, previous = inverse * r, rz
            rz = self._dot(r, z)
            p = z + (rz / previous) * p
        a, b = x.split(self.sizes)
        return a, b

    def _dot(self, x: Tensor, y: Tensor) -> Tensor:
        """Return an inner product over all rows and columns."""
        if not is_cut(self.observations):
            return torch.dot(x, y)
        (a, b), (c, d) = (v.split(self.sizes) for v in (x, y))
        o = self.observations
        return over_lines(o, torch.dot(a, c), 0) + over_lines(o, torch.dot(b, d), 1)

    def _norm(self, x: Tensor) -> float:
        return float(self._dot(x, x).sqrt() if is_cut(self.observations) else x.norm())

    def _gradient(self, x: Tensor, observations: Observations | None = None) -> Tensor:
        """Return the gradient at x of half the loss without penalty."""
        m, n = self.sizes
        zero = LowRankOperator(x.new_zeros(m, 1), x.new_zeros(1), x.new_zeros(n, 1))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            a, b = x.split(self.sizes)
            loss = observed_squared_loss(zero, observations or self.homogeneous, bias=(a, b))
        return torch.autograd.grad(loss, x)[0] / 2


def _halves(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return `x` with its end after m zeroed, and with its beginning zeroed."""
    first = torch.arange(len(x), device=x.device) < m
    return x * first, x * ~first


def loss_of_the_mean(observations: Observations) -> float:
    """Return half the weighted sum of squared deviations from the mean: the unit of objectives."""
    deviations = observations.values.double() - weighted_mean(observations)
    w = observations.weights
    squares = deviations.square() if w is None else deviations.square() * w.double()
    return 0.5 * float(total(observations, squares))
