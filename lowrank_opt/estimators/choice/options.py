"""Checks of what estimators are made with, at fit as scikit-learn asks."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from lowrank_opt.errors import OptionError

_AMOUNTS = ("radius", "penalty", "bias_penalty", "tolerance")
_COUNTS = ("rank", "max_iterations")


class ImputerOptions(Protocol):
    """What is read of a `LowRankImputer`."""

    rank: int | None
    penalty: float | None
    tolerance: float
    max_iterations: int
    validation: float

    @property
    def missing_values(self) -> object:
        """What stands for a gap."""
        ...


class CompletionOptions(Protocol):
    """What is read of a `MatrixCompletion`."""

    shape: tuple[int, int] | None
    rank: int | None
    radius: float | None
    penalty: float | None
    bias_penalty: float | None
    tolerance: float | None
    max_iterations: int | None
    validation: float | None

    @property
    def loss(self) -> object:
        """What the values are."""
        ...

    @property
    def bias(self) -> object:
        """None, or "additive" ones."""
        ...

    @property
    def clip(self) -> object:
        """None, a pair, or "auto" for one."""
        ...


def check_options(estimator: CompletionOptions) -> None:
    """Raise OptionError unless every parameter is in its domain."""
    for name in _AMOUNTS:
        _check_amount(name, getattr(estimator, name))
    for name in _COUNTS:
        check_count(name, getattr(estimator, name))
    if estimator.loss not in ("squared", "ordered_probit"):
        raise OptionError(f"loss must be 'squared' or 'ordered_probit'; got {estimator.loss!r}")
    if estimator.bias not in ("additive", None):
        raise OptionError(f"bias must be 'additive' or None; got bias={estimator.bias!r}")
    _check_share(estimator.validation)
    _check_shape(estimator.shape)
    _check_clip(estimator.clip)


def check_count(name: str, value: object) -> None:
    """Raise OptionError unless the value is None or a positive integer."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1:
        return
    if value is not None:
        raise OptionError(f"{name} must be a positive integer, or None; got {name}={value!r}")


def check_needed_count(name: str, value: object) -> None:
    """Raise OptionError unless the value is a positive integer."""
    if value is None:
        raise OptionError(f"{name} must be a positive integer; got None")
    check_count(name, value)


def given_settings(estimator: CompletionOptions, shape: tuple[int, int]) -> dict[str, float]:
    """Return the settings that are not to be chosen; the rank is an upper bound."""
    names = ("rank", "radius", "penalty", "bias_penalty")
    values = {name: getattr(estimator, name) for name in names}
    given = {name: float(value) for name, value in values.items() if value is not None}
    if "rank" in given:
        given["rank"] = float(min(given["rank"], *shape))
    return given


def _check_amount(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be positive, or None; got {name}={value!r}")


def _check_share(share: float | None) -> None:
    if share is not None and not 0 < share < 1:
        raise OptionError(f"validation must be a share in (0, 1), or None; got {share!r}")


def _check_shape(shape: tuple[int, int] | None) -> None:
    if shape is None:
        return
    if len(shape) != 2 or not all(int(x) == x and x >= 1 for x in shape):
        raise OptionError(f"shape must be two positive integers, or None; got shape={shape!r}")


def _check_clip(clip: object) -> None:
    if clip is None or (isinstance(clip, str) and clip == "auto"):
        return
    if isinstance(clip, tuple | list) and len(clip) == 2 and clip[0] <= clip[1]:
        return
    raise OptionError(f"clip must be 'auto', None or (smallest, largest); got clip={clip!r}")


def check_imputer_options(imputer: ImputerOptions) -> None:
    """Raise OptionError unless every parameter is in its domain."""
    for name in ("penalty", "tolerance"):
        _check_amount(name, getattr(imputer, name))
    for name in ("rank", "max_iterations"):
        check_count(name, getattr(imputer, name))
    _check_share(imputer.validation)
    marker = imputer.missing_values
    if not (isinstance(marker, int | float | np.number) or type(marker).__name__ == "NAType"):
        raise OptionError(f"missing_values must be a number, NaN or pandas.NA; got {marker!r}")
