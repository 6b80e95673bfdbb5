"""Fit with the settings given, and with those chosen on held-out entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.path import RegularizationPath, Setting, Walk, follow_path
from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.completion.solvers.traits import AnyResult
from lowrank_opt.errors import OptionError
from lowrank_opt.estimators.choice.intervals import Intervals
from lowrank_opt.estimators.choice.known import calibrated
from lowrank_opt.estimators.choice.search import Search, described_by
from lowrank_opt.estimators.choice.starts import Bias, constant, spread_or_zero
from lowrank_opt.estimators.choice.units import (
    intervals_out_of,
    path_out_of,
    result_out_of,
    settings_in,
    settings_out_of,
    unit_of,
)
from lowrank_opt.observations import Observations

# With fewer entries there is nothing to choose by.
_FEWEST = 10
# A held-out error that small, relative to the spread of the values, is an exact fit.
_EXACT = 1e-5
_LARGEST_SCALE, _REPETITIONS = 100, 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """What it takes to calibrate intervals of a fit whose settings were all given.

    Parameters
    ----------
    observations : Observations
    search : Search
    setting : mapping of str to float
    bias : {"additive"} or None
    validation : float
        Share of the entries that a second fit, with these settings, has not seen.
    seed : int
    unit : float
        What values have been divided by.
    """

    observations: Observations
    search: Search
    setting: Setting
    bias: Bias
    validation: float
    seed: int
    unit: float = 1.0

    def intervals(self) -> Intervals:
        """Fit again without some entries, and return intervals from the errors on these."""
        kept, held_out = _split(self.observations, self.validation, self.seed)
        judged = self.search.refit(kept, self.setting, None)
        found = _calibrated(judged, self.observations, kept, held_out, self.search, self.bias)
        return intervals_out_of(self.unit, found)


class Choice(NamedTuple):
    """A fit of all entries.

    Parameters
    ----------
    result : CompletionResult or BayesianResult
    setting : mapping of str to float
    path : RegularizationPath
        What was tried; empty if nothing was to be chosen.
    intervals : Intervals, Calibration or None
        Calibrated by the errors of the path's best fit on the held-out entries; of fewer draws
        for a solver that draws, and chooses nothing. Where nothing was chosen, that is still to
        be done.
    """

    result: AnyResult
    setting: Setting
    path: RegularizationPath
    intervals: Intervals | Calibration | None


def choose_and_fit(
    observations: Observations,
    search: Search,
    given: Mapping[str, float],
    *,
    bias: Bias,
    validation: float | None,
    seed: int,
    point: bool = False,
) -> Choice:
    """Choose by a path what is not given, then fit all entries from where the path ended.

    Parameters
    ----------
    observations : Observations
    search : Search
        The solver, and what is chosen for it.
    given : mapping of str to float
        Settings that stay as they are.
    bias : {"additive"} or None
    validation : float or None
        Share of the entries to choose by; None for the first setting of the path.
    seed : int
    point : bool
        Calibrate the errors of point estimates, where a solver gives draws.

    Raises
    ------
    OptionError
        If a given setting is none of the solver's.
    """
    unit = unit_of(observations)
    if unit != 1:
        if search.watch is not None:
            search = replace(search, watch=search.watch.without_estimators())
        inner = choose_and_fit(
            observations.with_values(observations.values / unit),
            search,
            settings_in(unit, given),
            bias=bias,
            validation=validation,
            seed=seed,
            point=point,
        )
        return Choice(
            result_out_of(unit, inner.result),
            settings_out_of(unit, inner.setting),
            path_out_of(unit, inner.path),
            _out_of(unit, inner.intervals),
        )
    setting = _merged(search.first(observations), given)
    intervals: Intervals | Calibration | None = None
    if spread_or_zero(observations, bias) == 0:
        return Choice(constant(observations), setting, RegularizationPath(()), intervals)
    walks = [walk for walk in search.walks(observations) if walk.name not in given]
    path, start = RegularizationPath(()), None
    if validation is None or len(observations) < _FEWEST:
        pass
    elif walks or not search.solver.traits.validation:
        path, start, intervals = _judged(
            observations, search, setting, walks, bias=bias, validation=validation, seed=seed,
            point=point,
        )  # fmt: skip
        setting = path.best.setting if walks else setting
    else:
        quiet = replace(search, watch=None)
        intervals = Calibration(observations, quiet, setting, bias, validation, seed)
    return Choice(search.refit(observations, setting, start), setting, path, intervals)


def _judged(
    observations: Observations,
    search: Search,
    setting: Setting,
    walks: list[Walk],
    *,
    bias: Bias,
    validation: float,
    seed: int,
    point: bool,
) -> tuple[RegularizationPath, CompletionResult | None, Intervals]:
    """Return what the entries that are held out say: a path, its best fit, and intervals."""
    kept, held_out = _split(observations, validation, seed)
    path, start = RegularizationPath(()), None
    if walks:
        exact = _EXACT * spread_or_zero(observations, bias)
        path, start = follow_path(
            search.fit,
            kept,
            held_out,
            setting,
            walks,
            exact=exact,
            stopped=lambda: search.stopped,
        )
    judged: AnyResult | None = start
    if judged is None:
        judged = (search.fit if point else search.draw)(kept, setting, None)
    intervals = _calibrated(judged, observations, kept, held_out, search, bias)
    # Its problem would keep the entries that it was fitted to.
    return path, None if start is None else replace(start, problem=None), intervals


def _out_of(unit: float, found: Intervals | Calibration | None) -> Intervals | Calibration | None:
    if isinstance(found, Calibration):
        return replace(found, unit=unit)
    return None if found is None else intervals_out_of(unit, found)


def _split(
    observations: Observations, validation: float, seed: int
) -> tuple[Observations, Observations]:
    return observations.split(validation, generator=torch.Generator().manual_seed(seed))


def _calibrated(
    judged: AnyResult,
    observations: Observations,
    kept: Observations,
    held_out: Observations,
    search: Search,
    bias: Bias,
) -> Intervals:
    return calibrated(
        judged,
        kept,
        held_out,
        mean=weighted_mean(observations),
        bias=bias,
        clip=clip_range(observations),
        described=described_by(search.side, observations.shape),
    )


def clip_range(observations: Observations) -> tuple[float, float] | None:
    """Return the smallest and largest value if the values are those of a rating scale.

    That is, if there are at most 100 distinct ones, and each comes 10 times on average.
    """
    distinct = observations.values.unique()
    if len(distinct) > min(_LARGEST_SCALE, len(observations) // _REPETITIONS):
        return None
    return float(distinct[0]), float(distinct[-1])


def _merged(first: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    foreign = sorted(set(given) - set(first))
    if foreign:
        raise OptionError(
            f"this solver chooses or takes {sorted(first)}; got {foreign} too: leave them at None, "
            "or choose another solver"
        )
    return {**first, **given}


def fitted_completion(result: AnyResult) -> CompletionResult:
    """Return the point estimate of any result."""
    return result if isinstance(result, CompletionResult) else result.to_completion()
