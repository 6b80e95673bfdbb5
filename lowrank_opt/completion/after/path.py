"""Choosing settings by held-out entries, each fit started where the last one ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lowrank_opt.completion.results.result import CompletionResult
from lowrank_opt.completion.solvers.held_out import root_mean_square_error
from lowrank_opt.extras import extra
from lowrank_opt.observations import Observations

if TYPE_CHECKING:
    from pandas import DataFrame

Setting: TypeAlias = Mapping[str, float]
WarmFit: TypeAlias = Callable[[Observations, Setting, CompletionResult | None], CompletionResult]


class Walk(NamedTuple):
    """Multiply one setting by a factor again and again, as long as the held-out error falls.

    Parameters
    ----------
    name : str
        Of the setting.
    factor : float
        Positive, not one.
    steps : int
        At most that many.
    patience : int
        Steps in a row without a smaller error before the walk ends.
    gain : float
        An error counts as smaller if it is so by this share.
    bounds : pair of float
        A step beyond them is not taken, except for the last one onto the bound itself.
    whole : bool
        Round values down to whole numbers.
    also : tuple of str and float, optional
        Another setting, and the factor that it is multiplied by in each step.
    """

    name: str
    factor: float
    steps: int = 1
    patience: int = 1
    gain: float = 0.0
    bounds: tuple[float, float] = (0.0, math.inf)
    whole: bool = False
    also: tuple[str, float] | None = None

    def values(self, start: float) -> list[float]:
        """Return the values to try from `start`, in order.

        Examples
        --------
        >>> Walk("rank", 1.5, steps=5, bounds=(1, 10), whole=True).values(4)
        [6.0, 9.0, 10.0]
        """
        low, high = self.bounds
        values = [float(start)]
        for _ in range(self.steps):
            value = min(max(values[-1] * self.factor, low), high)
            value = float(math.floor(value)) if self.whole else value
            if value == values[-1]:
                break
            values.append(value)
        return values[1:]

    def settings(self, start: Setting) -> list[Setting]:
        """Return the settings to try from one, in order.

        Examples
        --------
        >>> walk = Walk("rank", 2.0, steps=2, also=("penalty", 1.5))
        >>> [dict(x) for x in walk.settings({"rank": 4.0, "penalty": 2.0})]
        [{'rank': 8.0, 'penalty': 3.0}, {'rank': 16.0, 'penalty': 4.5}]
        """
        settings: list[Setting] = []
        for step, value in enumerate(self.values(start[self.name]), start=1):
            new = {**start, self.name: value}
            if self.also is not None:
                name, factor = self.also
                new[name] = start[name] * factor**step
            settings.append(new)
        return settings


class PathPoint(NamedTuple):
    """One setting that was tried.

    Parameters
    ----------
    setting : mapping of str to float
    validation_rmse : float
    iterations : int
    seconds : float
        What this fit took.
    """

    setting: Setting
    validation_rmse: float
    iterations: int
    seconds: float


@dataclass(frozen=True)
class RegularizationPath:
    """The settings tried, in order, and their errors on held-out entries.

    Parameters
    ----------
    points : tuple of PathPoint

    Examples
    --------
    >>> points = (
    ...     PathPoint({"penalty": 2.0}, 1.0, 9, 0.1),
    ...     PathPoint({"penalty": 1.0}, 0.9, 4, 0.1),
    ... )
    >>> path = RegularizationPath(points)
    >>> path.best.setting, path.columns()["validation_rmse"]
    ({'penalty': 1.0}, [1.0, 0.9])
    """

    points: tuple[PathPoint, ...]

    @property
    def best(self) -> PathPoint:
        """The point with the smallest error, the first of them."""
        return min(self.points, key=lambda point: _comparable(point.validation_rmse))

    def __len__(self) -> int:
        return len(self.points)

    def columns(self) -> dict[str, list[float]]:
        """Return one list for each setting, and for errors, iterations and seconds."""
        names = list(self.points[0].setting) if self.points else []
        columns = {name: [float(p.setting[name]) for p in self.points] for name in names}
        columns["validation_rmse"] = [p.validation_rmse for p in self.points]
        columns["iterations"] = [float(p.iterations) for p in self.points]
        return columns | {"seconds": [p.seconds for p in self.points]}

    def to_pandas(self) -> DataFrame:
        """Return a data frame with one line for each setting tried."""
        with extra("experiments"):
            import pandas as pd
        return pd.DataFrame(self.columns())


def follow_path(
    fit: WarmFit,
    observations: Observations,
    held_out: Observations,
    setting: Setting,
    walks: Sequence[Walk],
    *,
    exact: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[RegularizationPath, CompletionResult]:
    """Search the settings one after the other, each fit started from a neighbour's result.

    Parameters
    ----------
    fit : callable
        Fits observations with a setting, started from a result or, with None, anew.
    observations : Observations
    held_out : Observations
        Entries of the same matrix that are not among those.
    setting : mapping of str to float
        The start: heavily regularised, so that a cold fit is quick.
    walks : sequence of Walk
        Taken in order, each from the best setting of those before.
    exact : float
        A held-out error as small as this ends the search.
    stopped : callable
        Asked before each further setting; true ends the search.

    Returns
    -------
    RegularizationPath
    CompletionResult
        Of the best setting, on `observations`.

    References
    ----------
    Warm starts along a path of penalties: Friedman, Hastie and Tibshirani (2010), Regularization
    paths for generalized linear models via coordinate descent, section 2.5; for spectral
    regularisation, Mazumder, Hastie and Tibshirani (2010), algorithm 1.

    Examples
    --------
    >>> from functools import partial
    >>> import torch
    >>> from lowrank_opt.completion import als
    >>> truth = torch.outer(torch.arange(1.0, 13.0), torch.arange(1.0, 9.0))
    >>> observed, held_out = Observations.from_dense(truth).split(
    ...     0.3, generator=torch.Generator().manual_seed(0)
    ... )
    >>> def fit(entries, setting, start):
    ...     return als(entries, 1, penalty=setting["penalty"], start=start)
    >>> walks = [Walk("penalty", 0.1, steps=6)]
    >>> path, result = follow_path(fit, observed, held_out, {"penalty": 1.0}, walks)
    >>> path.best.setting["penalty"] < 1e-2
    True
    """
    search = _Search(fit, observations, held_out, exact, stopped)
    search.look(setting, None)
    for walk in walks:
        search.follow(walk)
    assert search.best is not None, "the first setting was looked at"
    return RegularizationPath(tuple(search.points)), search.best[1]


class _Search:
    def __init__(
        self,
        fit: WarmFit,
        observations: Observations,
        held_out: Observations,
        exact: float,
        stopped: Callable[[], bool],
    ) -> None:
        self.fit, self.observations, self.held_out = fit, observations, held_out
        self.exact, self.stopped = exact, stopped
        self.points: list[PathPoint] = []
        self.best: tuple[PathPoint, CompletionResult] | None = None

    def follow(self, walk: Walk) -> None:
        """Walk from the best setting, and return to it after steps in vain."""
        assert self.best is not None, "a walk starts from a setting"
        (setting, best_rmse, _, _), result = self.best
        vain = 0
        for new in walk.settings(setting):
            if vain == walk.patience or best_rmse <= self.exact or self.stopped():
                return
            rmse, result = self.look(new, result)
            if rmse < best_rmse * (1 - walk.gain):
                best_rmse, vain = rmse, 0
                continue
            vain += 1

    def look(
        self, setting: Setting, start: CompletionResult | None
    ) -> tuple[float, CompletionResult]:
        """Fit one setting and take note of its error."""
        begin = time.perf_counter()
        result = self.fit(self.observations, setting, start)
        rmse = root_mean_square_error(result, self.held_out)
        seconds = time.perf_counter() - begin
        point = PathPoint(dict(setting), rmse, len(result.history), seconds)
        self.points.append(point)
        if self.best is None or _comparable(rmse) < _comparable(self.best[0].validation_rmse):
            self.best = (point, result)
        return rmse, result


def _comparable(rmse: float) -> float:
    """Return the error, with what is not a number as the worst."""
    return math.inf if math.isnan(rmse) else rmse
