r"""Biases that move with the time of an entry.

Koren (2009), equations 6 to 10: an entry of row i and column j at time t has the bias
:math:`\mu + b_i + \alpha_i\, \mathrm{dev}_i(t) + b_{i,\mathrm{day}(t)} + b_j
+ b_{j,\mathrm{bin}(t)}` with :math:`\mathrm{dev}_i(t) = \mathrm{sign}(t - t_i) |t - t_i|^\beta`
about the mean time :math:`t_i` of the row. Any solver completes what the bias leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lowrank_opt.completion.after.conformal import Predictor
from lowrank_opt.completion.after.time_bins import TimeBins, finite_times, times_of_entries
from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.errors import OptionError
from lowrank_opt.observations import Observations

P = TypeVar("P", bound=Predictor)

# Koren (2009), section 3.2: found by validation on the Netflix data.
_EXPONENT = 0.4


@dataclass(frozen=True, eq=False)
class DriftingBias:
    """Predicts from the row, the column and the time.

    Parameters
    ----------
    mean : float
    rows, slopes, centres : Tensor, shape (m,)
        Biases of rows, what one unit of `deviation` adds, and the mean times of the rows.
    cols : Tensor, shape (n, B)
        Biases of columns in each period.
    bins : TimeBins
    sessions, days : Tensor, shape (d,)
        Keys of rows and days, increasing, and their biases.
    day : float
        Length of a day in units of time; infinite if there are no biases of days.
    unit : float
        The root of the mean square of deviations, by which they are divided.
    """

    mean: float
    rows: Tensor
    slopes: Tensor
    centres: Tensor
    cols: Tensor
    bins: TimeBins
    sessions: Tensor
    days: Tensor
    day: float
    unit: float

    def predict(self, rows: Tensor, cols: Tensor, times: Tensor) -> Tensor:
        """Return the biases of entries, float64; rows, days and columns never seen add nothing."""
        there = self.rows.device
        i, j, t = (
            torch.as_tensor(rows).to(there),
            torch.as_tensor(cols).to(there),
            finite_times(times),
        )
        t = t.to(there)
        drift = self.slopes[i] * deviation(t, self.centres[i]) / self.unit
        return (
            self.mean + self.rows[i] + drift + self.cols[j, self.bins.bin(t)] + self._of_day(i, t)
        )

    def _of_day(self, rows: Tensor, times: Tensor) -> Tensor:
        if len(self.sessions) == 0:
            return torch.zeros_like(times)
        keys = _session_keys(rows, times, self.day)
        at = torch.searchsorted(self.sessions, keys).clamp_max(len(self.sessions) - 1)
        return torch.where(self.sessions[at] == keys, self.days[at], 0.0)

    def residual(self, observations: Observations, times: Tensor) -> Observations:
        """Return the entries less their biases."""
        biases = self.predict(observations.rows, observations.cols, times)
        values = observations.values.double() - biases
        return observations.with_values(values.to(observations.dtype))


def deviation(times: Tensor, centres: Tensor) -> Tensor:
    r"""Return :math:`\mathrm{sign}(t - c)\, |t - c|^{0.4}`."""
    apart = times - centres
    return apart.sign() * apart.abs() ** _EXPONENT


def fit_drifting_bias(
    observations: Observations,
    times: Tensor,
    *,
    bins: int = 1,
    day: float | None = None,
    penalty: float = 5.0,
    drift_penalty: float = 100.0,
    day_penalty: float = 10.0,
) -> DriftingBias:
    r"""Fit biases that move with time: a ridge regression, solved to rounding.

    Minimises the weighted sum of squared residuals plus `penalty` times the squares of
    :math:`b_i, b_j`, plus `drift_penalty` times the squares of :math:`\alpha_i,
    b_{j,\mathrm{bin}}`, plus `day_penalty` times the squares of :math:`b_{i,\mathrm{day}}`; the
    mean is that of the values.

    Parameters
    ----------
    observations : Observations, shape (m, n)
    times : Tensor, shape (nnz,)
        Of the entries, in any unit; integers or float64, since seconds since 1970 do not fit into
        float32.
    bins : int
        Periods of the columns, with equally many entries each.
    day : float, optional
        Length, in the unit of the times, of days with a bias of their own in each row, 86400 for
        seconds; by default there are none.
    penalty, drift_penalty, day_penalty : float
        Positive; they count like so many entries of value zero.

    Returns
    -------
    DriftingBias

    Raises
    ------
    ObservationError
        If there is not a finite time for each entry.
    OptionError
        If an option is not positive.

    References
    ----------
    Koren (2009), Collaborative filtering with temporal dynamics, equations 6 to 10.

    Examples
    --------
    >>> seen = Observations(torch.arange(6), torch.zeros(6).long(), torch.arange(6.0), (6, 1))
    >>> bias = fit_drifting_bias(seen, torch.arange(6.0), bins=2, penalty=1e9, drift_penalty=1e-9)
    >>> bias.cols
    tensor([[-1.5000,  1.5000]], dtype=torch.float64)
    """
    t = times_of_entries(observations, times)
    penalties = {"penalty": penalty, "drift_penalty": drift_penalty, "day_penalty": day_penalty}
    for name, amount in {"day": day, **penalties}.items():
        if amount is not None and not (math.isfinite(amount) and amount > 0):
            raise OptionError(f"{name} must be positive and finite; got {name}={amount!r}")
    periods, (m, n), i, j = (
        TimeBins.of_equal_counts(t, bins),
        observations.shape,
        observations.rows,
        observations.cols,
    )
    counts = torch.bincount(i, minlength=m).clamp_min(1)
    centres = t.new_zeros(m).index_add(0, i, t) / counts
    moved = deviation(t, centres[i])
    unit = float(moved.square().mean().sqrt()) or 1.0
    keys = _session_keys(i, t, day) if day is not None else i.new_empty(0)
    sessions, session = keys.unique(return_inverse=True)
    ones, mean = torch.ones_like(t), weighted_mean(observations)
    blocks = [
        (i, ones, m, penalty),
        (j, ones, n, penalty),
        (i, moved / unit, m, drift_penalty),
        (periods.columns(j, t), ones, n * len(periods), drift_penalty),
    ]
    blocks += [(session, ones, len(sessions), day_penalty)] if day is not None else []
    rows, cols, slopes, drifts, *days = _ridge(observations, mean, blocks)
    return DriftingBias(
        mean,
        rows,
        slopes,
        centres,
        cols.unsqueeze(1) + drifts.view(n, len(periods)),
        periods,
        sessions,
        days[0] if days else rows.new_empty(0),
        math.inf if day is None else day,
        unit,
    )


@dataclass(frozen=True, eq=False)
class DriftingResult(Generic[P]):
    """A drifting bias, and the completion of what it leaves.

    Parameters
    ----------
    bias : DriftingBias
    result : CompletionResult, BayesianResult or the like
        Of the residuals.
    """

    bias: DriftingBias
    result: P

    def predict(
        self,
        rows: Tensor,
        cols: Tensor,
        times: Tensor,
        *,
        clip: tuple[float, float] | None = None,
    ) -> Tensor:
        """Return the predictions of entries at these times, float64."""
        predictions = (
            self.bias.predict(rows, cols, times) + self.result.predict(rows, cols).double()
        )
        return predictions if clip is None else predictions.clamp(*clip)


def fit_with_drift(
    fit: Callable[[Observations], P],
    observations: Observations,
    times: Tensor,
    *,
    bins: int = 1,
    day: float | None = None,
    penalty: float = 5.0,
    drift_penalty: float = 100.0,
    day_penalty: float = 10.0,
) -> DriftingResult[P]:
    """Fit drifting biases, then complete what they leave with any solver.

    Parameters
    ----------
    fit : callable
        From observations to a result: ``lambda left: bayesian(left, 16)``.
    observations, times, bins, day, penalty, drift_penalty, day_penalty
        As in `fit_drifting_bias`.

    Returns
    -------
    DriftingResult

    Examples
    --------
    >>> from lowrank_opt.completion import als
    >>> times = torch.arange(40.0)
    >>> rows, cols = torch.arange(40) // 5, torch.arange(40) % 5
    >>> seen = Observations(rows, cols, 0.1 * times, (8, 5))
    >>> model = fit_with_drift(lambda left: als(left, 1, penalty=1.0), seen, times)
    >>> model.predict(rows[:2], cols[:2], times[:2]).shape
    torch.Size([2])
    """
    bias = fit_drifting_bias(
        observations,
        times,
        bins=bins,
        day=day,
        penalty=penalty,
        drift_penalty=drift_penalty,
        day_penalty=day_penalty,
    )
    return DriftingResult(bias, fit(bias.residual(observations, times)))


Block = tuple[Tensor, Tensor, int, float]


def _ridge(observations: Observations, mean: float, blocks: list[Block]) -> list[Tensor]:
    """Return the coefficients of blocks of one-hot columns times values, each with its penalty.

    They are found on the host, and are where the observations are.
    """
    import numpy as np
    from scipy.sparse import coo_array, hstack
    from scipy.sparse.linalg import lsqr

    count, w = len(observations), observations.weights
    root = torch.ones_like(observations.values) if w is None else w
    root = root.double().sqrt()
    target = root * (observations.values.double() - mean)
    # In coefficients times the root of their penalty, all are penalised by one.
    lines = np.arange(count)
    parts = [
        coo_array(
            ((root * x / math.sqrt(penalty)).cpu().numpy(), (lines, index.cpu().numpy())),
            shape=(count, size),
        )
        for index, x, size, penalty in blocks
    ]
    solution = lsqr(hstack(parts).tocsr(), target.cpu().numpy(), damp=1.0, atol=1e-12, btol=1e-12)[
        0
    ]
    sizes = [size for _, _, size, _ in blocks]
    pieces = torch.from_numpy(solution).to(observations.device).split(sizes)
    return [x / math.sqrt(block[3]) for x, block in zip(pieces, blocks, strict=True)]


def _session_keys(rows: Tensor, times: Tensor, day: float) -> Tensor:
    """Return a number for each row and day, the same whenever they are."""
    # Days before the epoch are negative: 2^31 of them on both sides fit beside 2^31 rows.
    days = (times / day).floor().clamp(-(2.0**31), 2.0**31 - 1)
    return rows * (1 << 32) + days.long()
