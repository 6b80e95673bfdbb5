"""Periods of time, and matrices whose columns change from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, eq=False)
class TimeBins:
    """Periods, by the times at which one ends and the next begins.

    With `columns`, each column becomes one for each period: a matrix m x (n B), column
    ``j B + bin`` of which is column j in that period. Its `features` say which were one: given to
    `bayesian` they tie the periods of a column together, and beside an identity in `Inductive`
    they give it factors that drift.

    Parameters
    ----------
    edges : Tensor, shape (B - 1,)
        Increasing.

    Examples
    --------
    >>> bins = TimeBins.of_equal_counts(torch.arange(90.0), 3)
    >>> bins.edges.tolist(), bins.bin(torch.tensor([-5.0, 40.0, 1e9])).tolist()
    ([30.0, 60.0], [0, 1, 2])
    """

    edges: Tensor

    @classmethod
    def of_equal_counts(cls, times: Tensor, bins: int) -> TimeBins:
        """Return at most `bins` periods with about equally many of the times.

        Raises
        ------
        OptionError
            If `bins` is not positive.
        """
        if bins < 1:
            raise OptionError(f"bins must be a positive integer; got bins={bins!r}")
        t = finite_times(times).sort().values
        edges = t[torch.arange(1, bins, device=t.device) * len(t) // bins].unique()
        return cls(edges[edges > t[0]])

    def __len__(self) -> int:
        return len(self.edges) + 1

    def bin(self, times: Tensor) -> Tensor:
        """Return the number of the period of each time; the first and the last are open."""
        return torch.bucketize(finite_times(times).to(self.edges.device), self.edges, right=True)

    def columns(self, cols: Tensor, times: Tensor) -> Tensor:
        """Return the columns ``j B + bin`` of entries in the matrix of all periods."""
        return cols * len(self) + self.bin(times)

    def expand(self, observations: Observations, times: Tensor) -> Observations:
        """Return the entries in the matrix m x (n B) of all periods."""
        (m, n), o = observations.shape, observations
        cols = self.columns(o.cols, times_of_entries(o, times))
        return Observations(o.rows, cols, o.values, (m, n * len(self)), o.weights)

    def features(self, count: int) -> csr_array:
        """Return which of `count` columns each column of all periods was, (n B) x n."""
        from scipy.sparse import csr_array, eye_array, kron

        return csr_array(kron(eye_array(count), torch.ones(len(self), 1).numpy()))


def times_of_entries(observations: Observations, times: Tensor) -> Tensor:
    """Return a time for each entry, float64, where the entries are; or raise ShapeError."""
    t = finite_times(times)
    if t.shape != observations.values.shape:
        raise ShapeError(
            f"there must be a time for each of {len(observations)} entries; got {tuple(t.shape)}"
        )
    return t.to(observations.device)


def finite_times(times: Tensor) -> Tensor:
    """Return times as float64, or raise ObservationError."""
    t = torch.as_tensor(times).double()
    if not bool(torch.isfinite(t).all()):
        raise ObservationError("times must be finite; got NaN or infinity: fill what is missing")
    return t
