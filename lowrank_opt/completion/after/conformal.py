r"""Prediction intervals with a finite-sample guarantee, for any solver: split conformal prediction.

From calibration entries that were not fitted come scores :math:`e_k = |v_k - \hat v_k| / s_k`; the
interval of a new entry is :math:`\hat v \pm q\, s` with q the
:math:`\lceil (n + 1)\, c \rceil`-th smallest score. If the n scores and that of the new entry are
exchangeable, as they are for entries held out at random, the interval covers with probability at
least c, whatever the model; without ties at most :math:`c + 1/(n + 1)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lowrank_opt.completion.after.left_out import left_out_residuals
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.errors import ObservationError, OptionError, ShapeError
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from lowrank_opt.completion.results.result import Positions


class Predictor(Protocol):
    """What has predictions: a result of any solver."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        ...

    def predict(self, rows: Positions, cols: Positions) -> Tensor:
        """Return the predictions at these positions."""
        ...


EntryFunction = Callable[[Tensor, Tensor], Tensor]
Scale = Literal["posterior"] | EntryFunction | None
P = TypeVar("P", bound=Predictor)


@dataclass(frozen=True, eq=False)
class Conformal(Generic[P]):
    """Intervals around the predictions of a result.

    Parameters
    ----------
    result : CompletionResult, BayesianResult or the like
    scores : Tensor, shape (k,)
        Of the calibration entries, increasing within each group.
    weights : Tensor, shape (k,)
        Of the scores; equal unless `importance` is given.
    groups : Tensor, shape (k,)
        Of the scores, increasing.
    scale, group, importance : callable, optional
        Functions of rows and columns; see `conformal`.
    bounds : pair of float
        Smallest and largest value there is.
    """

    result: P
    scores: Tensor
    weights: Tensor
    groups: Tensor
    scale: EntryFunction | None = None
    group: EntryFunction | None = None
    importance: EntryFunction | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def interval(
        self, rows: Positions, cols: Positions, *, coverage: float = 0.9
    ) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends for new entries.

        Parameters
        ----------
        rows, cols : Tensor, array, sequence of int or int
            Zero-based, of shapes that broadcast.
        coverage : float
            In (0, 1).

        Returns
        -------
        lower, upper : Tensor
            In the broadcast shape, float64; infinite, or the bounds, where there are too few
            calibration entries for the coverage: at least ``coverage / (1 - coverage)`` are needed.

        Raises
        ------
        OptionError
            If `coverage` is not in (0, 1).
        """
        _check_coverage(coverage)
        device = self.scores.device
        i, j = (torch.as_tensor(x).to(device) for x in (rows, cols))
        i, j = torch.broadcast_tensors(i, j)
        shape, i, j = i.shape, i.reshape(-1), j.reshape(-1)
        low, high = self.bounds
        centre = self.result.predict(i, j).double().clamp(low, high)
        margin = self._quantiles(i, j, coverage) * _of(self.scale, i, j, 1.0)
        # A score of infinity covers everything, also where the scale is zero.
        unknown = margin.isnan() | centre.isnan()
        margin, centre = margin.where(~unknown, math.inf), centre.where(~centre.isnan(), 0.0)
        lower, upper = (centre - margin).clamp(low, high), (centre + margin).clamp(low, high)
        return lower.reshape(shape), upper.reshape(shape)

    def coverage(self, entries: Observations, *, coverage: float = 0.9) -> float:
        """Return the share of entries that are inside their intervals."""
        lower, upper = self.interval(entries.rows, entries.cols, coverage=coverage)
        values = entries.values.double()
        return float(((lower <= values) & (values <= upper)).double().mean())

    def _quantiles(self, i: Tensor, j: Tensor, coverage: float) -> Tensor:
        """Return the score that a share of at most ``1 - coverage`` exceeds, for each entry."""
        group, weight = _of(self.group, i, j, 0.0), _of(self.importance, i, j, 1.0)
        found = torch.full_like(group, math.inf)
        for g in group.unique():
            of_group, asked = self.groups == g, group == g
            scores, mass = self.scores[of_group], self.weights[of_group].cumsum(0)
            found[asked] = _quantile(scores, mass, weight[asked], coverage)
        return found


def conformal(
    result: P,
    calibration: Observations,
    *,
    scale: Scale = None,
    group: EntryFunction | None = None,
    importance: EntryFunction | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Conformal[P]:
    r"""Calibrate prediction intervals on entries that were not used for fitting.

    Parameters
    ----------
    result : CompletionResult, BayesianResult or the like
        Anything with ``predict(rows, cols)``.
    calibration : Observations
        Not fitted, and not chosen by their values. Their weights, if any, are importances.
    scale : "posterior" or callable, optional
        Divides residuals, so that widths adapt: the posterior standard deviation of a
        `BayesianResult`; or a function of rows and columns, such as `residual_scale` gives, that
        does not depend on the calibration values. By default all intervals are equally wide.
    group : callable, optional
        Numbers of groups, from rows and columns. Each group is calibrated by its own entries, and
        the guarantee then holds within each of them.
    importance : callable, optional
        How much more frequent an entry is where intervals are wanted than among the calibration
        entries, up to a factor, if that is known: see `row_importance`.
    bounds : pair of float
        Smallest and largest value there is: predictions and intervals are clipped to them.

    Returns
    -------
    Conformal

    Raises
    ------
    ObservationError
        If a scale is negative or not finite, an importance is not finite and nonnegative, or
        bounds exclude a calibration value.
    ShapeError
        If the calibration entries are not of the result's shape, or there is no posterior.

    Notes
    -----
    Discrete values give no ties by themselves. Where scores tie, as for a constant prediction, the
    coverage is above what was asked and never below.

    References
    ----------
    Lei et al. (2018), Distribution-free predictive inference for regression, theorem 2.2 and
    equation 14 for scales; Vovk et al. (2005), section 4.5 for groups; Tibshirani et al. (2019),
    Conformal prediction under covariate shift, corollary 1 for importances.

    Examples
    --------
    >>> from lowrank_opt import HomogeneousBall, complete
    >>> rows, cols = torch.arange(2000) // 50, torch.arange(2000) % 50
    >>> noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    >>> seen = Observations(rows, cols, 3 + noise, (40, 50))
    >>> fitted, held = seen.split(0.5, generator=torch.Generator().manual_seed(1))
    >>> calibration, new = held.split(0.5, generator=torch.Generator().manual_seed(2))
    >>> ball = HomogeneousBall((40, 50), 1, radius=1.0)
    >>> intervals = conformal(complete(fitted, ball), calibration)
    >>> 0.85 < intervals.coverage(new) < 0.95
    True
    """
    if calibration.shape != tuple(result.shape):
        raise ShapeError(
            f"calibration entries must be of the same matrix; got {calibration.shape} for "
            f"{tuple(result.shape)}"
        )
    i, j, values = calibration.rows, calibration.cols, calibration.values.double()
    low, high = bounds
    if not bool(((low <= values) & (values <= high)).all()):
        raise ObservationError(f"bounds must include all calibration values; got bounds={bounds!r}")
    function = _scale_of(result, scale)
    residuals = (values - result.predict(i, j).double().clamp(low, high)).abs()
    scales = _of(function, i, j, 1.0)
    _check(scales, "scales")
    # A prediction that is not a number is as wrong as can be.
    scores = torch.where(residuals == 0, 0.0, residuals / scales)
    scores = torch.where(scores.isnan(), math.inf, scores)
    given = torch.ones_like(values) if calibration.weights is None else calibration.weights.double()
    weights = _of(importance, i, j, 1.0) * given
    _check(weights, "importances")
    groups = _of(group, i, j, 0.0)
    order = scores.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    return Conformal(
        result, scores[order], weights[order], groups[order], function, group, importance, bounds
    )


def conformal_intervals(
    result: Predictor,
    calibration: Observations,
    rows: Positions,
    cols: Positions,
    *,
    coverage: float = 0.9,
    scale: Scale = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Tensor, Tensor]:
    """Return the lower and upper ends of intervals: `conformal` and its `interval` in one call."""
    intervals = conformal(result, calibration, scale=scale, bounds=bounds)
    return intervals.interval(rows, cols, coverage=coverage)


def calibrate(
    fit: Callable[[Observations], P],
    observations: Observations,
    *,
    share: float = 0.1,
    scale: Scale | Literal["residual"] = None,
    group: EntryFunction | None = None,
    importance: EntryFunction | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    generator: torch.Generator | None = None,
) -> Conformal[P]:
    """Fit to a random part of the entries, with any solver, and calibrate on the rest.

    Parameters
    ----------
    fit : callable
        From observations to a result: ``lambda part: als(part, 20, penalty=8.0)``.
    observations : Observations
    share : float
        Of the entries, for calibration.
    scale : "residual", "posterior" or callable, optional
        "residual" is `residual_scale` of the fitted part.
    group, importance, bounds
        As in `conformal`.
    generator : torch.Generator, optional

    Returns
    -------
    Conformal
        Its `result` is what `fit` returned.

    Raises
    ------
    ObservationError
        If the share cannot be held out, or as in `conformal`.

    Examples
    --------
    >>> from lowrank_opt.completion import als
    >>> truth = torch.outer(torch.arange(1.0, 21.0), torch.arange(1.0, 11.0))
    >>> seen = Observations.from_dense(truth.where(torch.eye(20, 10) == 0, torch.nan))
    >>> generator = torch.Generator().manual_seed(0)
    >>> def fit(part: Observations) -> CompletionResult:
    ...     return als(part, 1, penalty=0.01, bias=None)
    >>> intervals = calibrate(fit, seen, generator=generator)
    >>> lower, upper = intervals.interval(3, 3)
    >>> bool(lower <= truth[3, 3] <= upper)
    True
    """
    fitted, calibration = observations.split(share, generator=generator)
    result = fit(fitted)
    chosen = residual_scale(result, fitted) if scale == "residual" else scale
    return conformal(
        result, calibration, scale=chosen, group=group, importance=importance, bounds=bounds
    )


def residual_scale(
    result: Predictor, observations: Observations, *, shrinkage: float = 10.0
) -> EntryFunction:
    """Return a scale for each entry: a row factor times a column factor, from fitted residuals.

    Parameters
    ----------
    result : CompletionResult, BayesianResult or the like
    observations : Observations
        Not the calibration entries: the fitted ones.
    shrinkage : float
        Positive; counts like that many entries with the average residual.

    Notes
    -----
    Residuals are those of `left_out_residuals`: what was fitted is too small, the more so the
    fewer entries a row has. Of a result that is neither a `CompletionResult` nor a
    `BayesianResult` nothing but predictions is known, and its residuals are taken as they are.
    """
    i, j = observations.rows, observations.cols
    if isinstance(result, CompletionResult | BayesianResult):
        residuals = left_out_residuals(result, observations).abs()
    else:
        residuals = (observations.values.double() - result.predict(i, j).double()).abs()
    mean = residuals.mean().clamp_min(torch.finfo(torch.float64).tiny)
    rows = _means(residuals / mean, i, observations.row_counts, shrinkage)
    cols = _means(residuals / mean / rows[i], j, observations.col_counts, shrinkage)
    return lambda rows_at, cols_at: mean * rows[rows_at] * cols[cols_at]


def row_importance(calibration: Observations, rows: Tensor) -> EntryFunction:
    """Return importances for rows that are asked for more, or less, often than calibrated.

    Parameters
    ----------
    calibration : Observations
    rows : Tensor, shape (k,)
        Of the entries that intervals are wanted for; their values are not needed.

    Returns
    -------
    callable
        The ratio of the two shares of each row, with one entry spread over all rows added to both.
    """
    m = calibration.shape[0]
    asked = torch.bincount(rows, minlength=m).double() + 1 / m
    known = calibration.row_counts.double() + 1 / m
    ratio = (asked / asked.sum()) / (known / known.sum())
    return lambda rows_at, cols_at: ratio[rows_at]


def _means(values: Tensor, index: Tensor, counts: Tensor, shrinkage: float) -> Tensor:
    totals = values.new_zeros(len(counts)).index_add(0, index, values)
    return (totals + shrinkage) / (counts + shrinkage)


def _quantile(scores: Tensor, mass: Tensor, weight: Tensor, coverage: float) -> Tensor:
    r"""Return the smallest scores whose cumulated weight is c times the total, new entry included.

    With unit weights that is the score number :math:`\lceil (n + 1)\, c \rceil`.
    """
    total = mass[-1] if len(mass) > 0 else weight.new_zeros(())
    # Rounding of the product must not ask for one score more: 10 * 0.9 is 9.
    wanted = coverage * (total + weight) * (1 - 1e-12)
    index = torch.searchsorted(mass, wanted.contiguous())
    padded = torch.cat((scores, scores.new_tensor([math.inf])))
    return padded[index.clamp_max(len(scores))]


def _scale_of(result: Predictor, scale: Scale) -> EntryFunction | None:
    if scale != "posterior":
        return scale
    if not isinstance(result, BayesianResult):
        raise ShapeError(
            f"scale='posterior' needs a BayesianResult; got {type(result).__name__}: use "
            "residual_scale(result, fitted_observations)"
        )
    return lambda i, j: result.predict(i, j, return_std=True)[1]


def _of(function: EntryFunction | None, i: Tensor, j: Tensor, default: float) -> Tensor:
    if function is None:
        return torch.full(i.shape, default, dtype=torch.float64, device=i.device)
    return function(i, j).double()


def _check(values: Tensor, name: str) -> None:
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ObservationError(f"{name} must be finite and nonnegative; got others")


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise OptionError(f"coverage must be in (0, 1); got coverage={coverage!r}")
