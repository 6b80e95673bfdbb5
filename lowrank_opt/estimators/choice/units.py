"""Values in a unit in which squares neither overflow nor vanish."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from lowrank_opt.completion import AdditiveBias, CompletionResult
from lowrank_opt.completion.after.path import PathPoint, RegularizationPath
from lowrank_opt.completion.loop.history import History
from lowrank_opt.completion.results.posterior import BayesianResult
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.errors import ObservationError
from lowrank_opt.estimators.choice.intervals import Intervals
from lowrank_opt.observations import Observations
from lowrank_opt.operator import LowRankOperator

# Fourth powers of anything within stay within the range of float64, and of float32 nearly so.
_LARGEST, _SMALLEST = 2.0**120, 2.0**-120
# Where differences of values, and the predictions between them, would leave the range.
_END = 2.0**1020
# What is in the unit of the values.
_AMOUNTS = ("radius", "penalty")


def unit_of(observations: Observations) -> float:
    """Return a power of two near the largest value if that is extreme, else one.

    Raises
    ------
    ObservationError
        If differences of values would overflow.
    """
    peak = float(observations.values.double().abs().max())
    if peak == 0 or _SMALLEST < peak < _LARGEST:
        return 1.0
    if peak >= _END:
        raise ObservationError(
            f"values must be below {_END:g}, so that their differences are finite; got {peak:g}: "
            "divide them"
        )
    return 2.0 ** math.frexp(peak)[1]


def settings_in(unit: float, settings: Mapping[str, float]) -> dict[str, float]:
    """Return settings for values that were divided by the unit."""
    return {k: x / unit if k in _AMOUNTS else x for k, x in settings.items()}


def settings_out_of(unit: float, settings: Mapping[str, float]) -> dict[str, float]:
    """Return settings for the values themselves."""
    return {k: x * unit if k in _AMOUNTS else x for k, x in settings.items()}


def result_out_of(unit: float, result: AnyResult) -> AnyResult:
    """Return the result for values that are multiplied by the unit; its certificate is lost."""
    if unit == 1:
        return result
    if isinstance(result, BayesianResult) and result.levels is not None:
        return replace(result, levels=result.levels * unit)
    history = _history(unit, result.history)
    if isinstance(result, BayesianResult):
        return replace(
            result,
            row_factors=result.row_factors * unit,
            row_bias=result.row_bias * unit,
            col_bias=result.col_bias * unit,
            mean=result.mean * unit,
            noise_precision=result.noise_precision / unit / unit,
            history=history,
        )
    left, scale, right = result.operator
    bias = result.bias
    return CompletionResult(
        LowRankOperator(left, scale * unit, right),
        AdditiveBias(bias.mean * unit, bias.rows * unit, bias.cols * unit),
        result.status,
        history,
        link=result.link,
    )


def path_out_of(unit: float, path: RegularizationPath) -> RegularizationPath:
    """Return the path for the values themselves."""
    return RegularizationPath(
        tuple(
            PathPoint(settings_out_of(unit, p.setting), p.validation_rmse * unit, *p[2:])
            for p in path.points
        )
    )


def intervals_out_of(unit: float, intervals: Intervals) -> Intervals:
    """Return intervals for the values themselves."""
    if unit == 1:
        return intervals
    levels = {
        known: replace(level, scale=level.scale * unit, least=level.least * unit)
        for known, level in intervals.levels.items()
    }
    return Intervals(levels)


def _history(unit: float, history: History) -> History:
    columns = history.columns()
    for name, power in (("objective", 2), ("validation_rmse", 1)):
        for _ in range(power):
            columns[name] = [x * unit for x in columns[name]]
    return History(**columns)
