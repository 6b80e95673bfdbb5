"""The sums of objective and dual bound, with their rounding errors, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_opt.completion.certificates.eigenvalue_bounds import TINY, U, gamma
from lowrank_opt.completion.model.bias import AdditiveBias
from lowrank_opt.kernels.cut_entries import along_columns, at_entries
from lowrank_opt.observations import Observations
from lowrank_opt.observations.part import SIDES, Part
from lowrank_opt.observations.parts import is_cut, over_lines, whole_shape
from lowrank_opt.operator import LowRankOperator

_BLOCK = 1024


class DualBound:
    r"""The parts of :math:`F \ge t\,(\text{linear} - h(-Y)) - \tfrac12 t^2\, \text{quadratic}`.

    Parameters
    ----------
    observations : Observations, float64
    operator : LowRankOperator, float64
    bias : AdditiveBias, float64
    bias_penalty : float or None
        None if the biases are given numbers.
    """

    def __init__(
        self,
        observations: Observations,
        operator: LowRankOperator,
        bias: AdditiveBias,
        bias_penalty: float | None,
    ) -> None:
        self.observations: Observations
        self.operator: LowRankOperator
        self.bias: AdditiveBias
        self.observations, self.operator, self.bias = observations, operator, bias
        self.bias_penalty = bias_penalty
        w = observations.weights
        self.weights: Tensor = torch.ones_like(observations.values) if w is None else w
        self.residuals: Tensor
        self.residual_errors: Tensor
        self.residuals, self.residual_errors = self._residuals()

    def gradient(self) -> Tensor:
        """Return y, the gradient with respect to the observed entries, shape (nnz,)."""
        return self.weights * self.residuals

    def objective(self) -> float:
        """Return an upper bound on the objective without the penalty of W."""
        worst = self.residuals.abs() + self.residual_errors
        total = 0.5 * self._above(sum_above(self.weights * worst.square()))
        if self.bias_penalty is not None:
            lines = [sum_above(x.square()) for x in (self.bias.rows, self.bias.cols)]
            for side in SIDES:
                if is_cut(self.observations, side):
                    lines[side] = self._above(lines[side])
            total += 0.5 * self.bias_penalty * sum(lines)
        return total * (1 + 8 * U)

    def linear(self, y: Tensor) -> float:
        r"""Return a lower bound on :math:`-\langle y, v - \mu - \text{given biases} \rangle`."""
        values, mean = self.observations.values, self.bias.mean
        shifted, size = values - mean, values.abs() + abs(mean)
        if self.bias_penalty is None:
            a, b = self._biases()
            shifted, size = shifted - a - b, size + a.abs() + b.abs()
        # The sum itself is off by the roundings of blocks of products.
        error = self._above(sum_above(y.abs() * size) * gamma(_BLOCK + 16))
        if self.part is None:
            return -math.fsum(_block_sums(y * shifted)) - error
        here = math.fsum(_block_sums(y * shifted))
        total, sizes, count = self.part.total(y.new_tensor([here, abs(here), 1.0])).tolist()
        return -total - error - gamma(count + 2) * sizes

    def quadratic(self, y: Tensor) -> float:
        """Return an upper bound on the sum of the terms of second order in y, times two."""
        positive = self.weights > 0
        # As y (y / w): the square of a small weight would underflow.
        total = self._above(sum_above(y[positive] * (y[positive] / self.weights[positive])))
        if self.bias_penalty is not None:
            rows, cols = self._margins(y).square().split(self.observations.shape)
            total += (self._above(sum_above(rows)) + sum_above(cols)) / self.bias_penalty
        return total * (1 + 8 * U)

    def _margins(self, y: Tensor) -> Tensor:
        """Return upper bounds on the moduli of the row sums and of the column sums of Y."""
        parts, o = [], self.observations
        # A row has all its entries in one process; it counts as empty in the others.
        longest = o.col_counts.max()
        if self.part is not None and is_cut(o, 1):
            longest = self.part.largest(longest)
        groups = ((o.rows, o.csr.counts.max(), None), (o.cols, longest, self.part))
        for (index, most, part), size in zip(groups, o.shape, strict=True):
            pair = y.new_zeros(2, size).index_add_(1, index, torch.stack((y, y.abs())))
            sums, sizes = pair if part is None else part.total(pair)
            parts.append(sums.abs() + gamma(2 * int(most) + 2) * sizes)
        return torch.cat(parts)

    def _above(self, x: float) -> float:
        """Return an upper bound on the sum of a nonnegative number of each process."""
        if self.part is None:
            return x
        total, count = self.part.total(self.weights.new_tensor([x, 1.0])).tolist()
        return total * (1 + gamma(count + 2))

    @property
    def part(self) -> Part[Observations] | None:
        """Of what the entries are a part."""
        return self.observations.part

    def _biases(self) -> tuple[Tensor, Tensor]:
        cols = along_columns(self.bias.cols, self.observations)
        return self.bias.rows[self.observations.rows], cols

    def _residuals(self) -> tuple[Tensor, Tensor]:
        observations, op, mean = self.observations, self.operator, self.bias.mean
        W = at_entries(op, observations)
        sizes = at_entries(LowRankOperator(*(x.abs() for x in op)), observations)
        (a, b), v = self._biases(), observations.values
        scale = W.abs() + abs(mean) + a.abs() + b.abs() + v.abs()
        return W + mean + a + b - v, 2 * gamma(op.rank + 4) * sizes + gamma(8) * scale


def nuclear_norm_above(op: LowRankOperator, observations: Observations | None = None) -> float:
    r"""Return an upper bound on the nuclear norm of the stored factors, float64.

    The smaller of :math:`\sum_k |s_k| \|l_k\| \|r_k\|`, a bound as it stands, and the sum of the
    computed singular values plus the backward errors of two QR factorizations and an SVD
    (Higham 2002, theorem 19.4), which are relative to the former. Where rows of the observations
    are cut, the former: at the optimum of a penalty on balanced factors both are the same.

    Examples
    --------
    >>> op = LowRankOperator.from_dense(torch.diag(torch.tensor([1.0, 2.0]).double()))
    >>> 3.0 <= nuclear_norm_above(op) < 3.0 + 1e-12
    True
    """
    left, scale, right = op
    lengths, longest = [torch.linalg.vector_norm(x, dim=0) for x in (left, right)], max(op.shape)
    cut = None if observations is None or not is_cut(observations) else observations
    if cut is not None:
        longest = max(whole_shape(cut))
        for side in SIDES:
            if is_cut(cut, side):
                lengths[side] = over_lines(cut, lengths[side].square(), side).sqrt()
    norms = lengths[0] * lengths[1]
    plain = float((scale.abs() * norms).sum()) * (1 + 2 * gamma(longest + op.rank + 8))
    if cut is not None:
        return plain * (1 + 8 * U)
    backward = gamma(64 * longest * op.rank)
    return min(plain, float(op.schatten_norm(1)) + backward * plain)


def sum_above(values: Tensor) -> float:
    """Return an upper bound on the sum of nonnegative numbers, each off by a few roundings."""
    lost = len(values) * TINY
    return (math.fsum(_block_sums(values)) + lost) * (1 + gamma(_BLOCK + 16))


def _block_sums(values: Tensor) -> list[float]:
    padded = torch.nn.functional.pad(values, (0, -len(values) % _BLOCK))
    return padded.view(-1, _BLOCK).sum(dim=1).tolist()
