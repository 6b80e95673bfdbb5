"""Fit with the settings given, and with those chosen on held-out entries."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from lowrank_opt.completion import CompletionResult
from lowrank_opt.completion.after.path import (
    PathPoint,
    RegularizationPath,
    Setting,
    Walk,
    follow_path,
)
from lowrank_opt.completion.model.bias import weighted_mean
from lowrank_opt.completion.solvers.held_out import root_mean_square_error
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
# A rough fit whose error is at least this share of that of biases alone is looked at again.
_CLOSE = 0.98
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
    if spread_or_zero(observations, bias) == 0:
        return Choice(constant(observations), setting, RegularizationPath(()), None)
    # What it splits the entries into is gone when it returns.
    found, intervals = _chosen(
        observations, search, setting, given, bias, validation, seed, point=point
    )
    result = search.refit(observations, found.setting, found.start)
    return Choice(result, found.setting, found.path, intervals)


def _chosen(
    observations: Observations,
    search: Search,
    setting: Setting,
    given: Setting,
    bias: Bias,
    validation: float | None,
    seed: int,
    *,
    point: bool,
) -> tuple[_Found, Intervals | Calibration | None]:
    """Return what is chosen, and intervals from the errors on the held-out entries."""
    walks = [_without(given, x) for x in search.walks(observations) if x.name not in given]
    draws = not search.solver.traits.validation
    nothing = _Found(setting, RegularizationPath(()))
    if validation is None or len(observations) < _FEWEST:
        return nothing, None
    if not (walks or draws):
        quiet = replace(search, watch=None)
        return nothing, Calibration(observations, quiet, setting, bias, validation, seed)
    kept, held_out = _split(observations, validation, seed)
    found, judged = _searched(search, kept, held_out, setting, walks, given, point=point)
    return found, _calibrated(judged, observations, kept, held_out, search, bias)


def _without(given: Mapping[str, float], walk: Walk) -> Walk:
    """Return a walk along which what is given stays as it is."""
    return walk._replace(also=None) if walk.also and walk.also[0] in given else walk


class _Found(NamedTuple):
    setting: Setting
    path: RegularizationPath
    start: CompletionResult | None = None


def _searched(
    search: Search,
    kept: Observations,
    held_out: Observations,
    setting: Setting,
    walks: Sequence[Walk],
    given: Setting,
    *,
    point: bool,
) -> tuple[_Found, AnyResult]:
    """Return the setting that predicts held-out entries best, and the fit that shows it."""
    alone = search.alone(kept, held_out, given)
    if alone is not None and search.by_radius:
        # Where a path of norm bounds begins, the matrix counts little.
        setting = {**setting, "bias_penalty": alone.penalty}
    found, judged = _walked(search, kept, held_out, setting, walks, point=point)
    if alone is None or search.stopped:
        return found, judged
    last = alone.at(setting)
    search.told(last.setting, alone.result)
    path = RegularizationPath((*found.path.points, last))
    if _beats(last.validation_rmse, judged, found, search, kept, held_out):
        return _Found(last.setting, path), alone.result
    return found._replace(path=path), judged


def _walked(
    search: Search,
    kept: Observations,
    held_out: Observations,
    setting: Setting,
    walks: Sequence[Walk],
    *,
    point: bool,
) -> tuple[_Found, AnyResult]:
    if not walks:
        begin = time.perf_counter()
        drawn = (search.fit if point else search.draw)(kept, setting, None)
        rmse, seconds = root_mean_square_error(drawn, held_out), time.perf_counter() - begin
        only = PathPoint(dict(setting), rmse, len(drawn.history), seconds)
        return _Found(setting, RegularizationPath((only,))), drawn
    path, start = follow_path(
        search.fit,
        kept,
        held_out,
        setting,
        walks,
        exact=_EXACT * spread_or_zero(kept, search.bias),
        stopped=lambda: search.stopped,
    )
    # Its problem would keep the entries that it was fitted to.
    return _Found(path.best.setting, path, replace(start, problem=None)), start


def _beats(
    rmse: float,
    judged: AnyResult,
    found: _Found,
    search: Search,
    kept: Observations,
    held_out: Observations,
) -> bool:
    """Return whether biases of that error beat what was found, fitted in earnest where close.

    The points of a path are fitted roughly, and to stop early may be what made one good.
    """
    rough = root_mean_square_error(judged, held_out)
    if not _CLOSE * rmse < rough < rmse or not isinstance(judged, CompletionResult):
        return not rough < rmse
    earnest = search.refit(kept, found.setting, found.start)
    return not root_mean_square_error(earnest, held_out) < rmse


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
