"""Entries that are ordered levels of a normal variable around a low-rank matrix, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_opt.kernels.gaussian_rows import Moments
from lowrank_opt.observations import Observations

Floats = NDArray[np.floating]

# In entries.
_WORTH_A_THREAD = 1 << 15


@dataclass(frozen=True, eq=False)
class Scores:
    """What the levels of the entries are levels around, and how widely.

    Parameters
    ----------
    means : array, shape (nnz,)
        In the order of the rows.
    rows, cols : array, shapes (m,) and (n,), float64
        Roots of noise precisions, whose products are those of the entries.
    """

    means: Floats
    rows: Floats
    cols: Floats


@dataclass(frozen=True, eq=False)
class ThresholdLikelihood:
    """The log-likelihood as a function of the finite thresholds, to second order.

    Parameters
    ----------
    value : float
    gradient : array, shape (L - 1,)
    hessian : array, shape (L - 1, L - 1)
        Tridiagonal.
    """

    value: float
    gradient: Floats
    hessian: Floats


@dataclass(frozen=True, eq=False)
class OrderedLevels:
    """The level of each entry, in the order of the rows.

    Parameters
    ----------
    observations : Observations
    levels : array, shape (nnz,), uint8
    count : int
        L.

    Examples
    --------
    >>> levels = OrderedLevels.of(Observations([0, 1], [0, 0], [5.0, 2.0], (2, 1)))
    >>> levels.levels.tolist(), levels.count
    ([1, 0], 2)
    """

    observations: Observations
    levels: NDArray[np.uint8]
    count: int

    @classmethod
    def of(cls, observations: Observations) -> OrderedLevels:
        """Return the place of each value among the distinct ones, of which there are few."""
        known, index = torch.unique(observations.values, return_inverse=True)
        by_rows = index[observations.csr.order].to(torch.uint8)
        return cls(observations, by_rows.numpy(), len(known))

    def scores(self, rows: Moments, cols: Moments, precisions: tuple[Floats, Floats]) -> Scores:
        """Return the scores of factors and biases without spread, and given noise precisions."""
        from lowrank_opt.kernels.loops.passes import entries_pass

        (u, a), (v, c) = (
            (x.means[:, :-2].contiguous().numpy(), x.means[:, -1].contiguous().numpy())
            for x in (rows, cols)
        )
        means = np.empty(len(self.levels), u.dtype)
        self._over_rows(entries_pass, u, v, a, c, means)
        return Scores(means, *map(np.sqrt, precisions))

    def likelihood(self, scores: Scores, thresholds: Floats) -> ThresholdLikelihood:
        """Return the log-likelihood of all levels.

        Parameters
        ----------
        scores : Scores
        thresholds : array, shape (L - 1,), float64
            Increasing.
        """
        from lowrank_opt.kernels.loops.levels import likelihood_pass

        ends = _with_ends(thresholds)
        out = np.empty((len(scores.rows), 4 * len(ends)))
        data = (self.levels, scores.means, scores.rows, scores.cols)
        self._over_rows(likelihood_pass, *data, ends, out)
        values, gradient, diagonal, right = np.split(out.sum(0), 4)
        beside = np.diag(right[1:-2], 1)
        hessian = np.diag(diagonal[1:-1]) + beside + beside.T
        return ThresholdLikelihood(float(values.sum()), gradient[1:-1], hessian)

    def draw(self, scores: Scores, thresholds: Floats, rng: np.random.Generator) -> Tensor:
        """Return a draw of the normal variable of each entry, in the order of the rows."""
        from lowrank_opt.kernels.loops.levels import latent_pass

        out = np.empty_like(scores.means)
        data = (self.levels, scores.means, scores.rows, scores.cols, _with_ends(thresholds))
        self._over_rows(latent_pass, *data, rng.random(len(out)), out)
        return torch.from_numpy(out)

    def _over_rows(self, kernel: Callable[..., None], *parts: Floats | NDArray[np.uint8]) -> None:
        from lowrank_opt.kernels.loops.rows import sweep, threads_for

        threads = threads_for(len(self.levels), _WORTH_A_THREAD)
        sweep(kernel, self.observations.csr, threads, *parts)

    def by_columns(self, by_rows: Tensor) -> Tensor:
        """Return numbers in the order of the columns."""
        return by_rows[self.observations.pattern.csr_of_csc]


def _with_ends(thresholds: Floats) -> Floats:
    return np.concatenate(([-np.inf], thresholds, [np.inf]))
