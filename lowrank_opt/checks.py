"""Checks of single arguments at the public boundary: each rule and its message once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lowrank_opt.errors import OptionError, RadiusError, RankError, ShapeError, TargetError

T = TypeVar("T")


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return `shape` as two positive integers, or raise ShapeError.

    Examples
    --------
    >>> check_shape((3, 2))
    (3, 2)
    """
    m, n = (int(x) for x in shape) if len(shape) == 2 else (0, 0)
    if m < 1 or n < 1 or (m, n) != tuple(shape):
        raise ShapeError(f"shape must be two positive integers (rows, columns); got {shape!r}")
    return m, n


def check_rank(
    rank: int, shape: tuple[int, int], name: str = "rank", *, what: str = "matrix"
) -> int:
    """Return `rank` if it is in 1..min(m, n), or raise RankError.

    Examples
    --------
    >>> check_rank(2, (3, 2))
    2
    """
    m, n = shape
    if not 1 <= rank <= min(m, n) or int(rank) != rank:
        raise RankError(
            f"{name} must be in 1..{min(m, n)} for a {m} x {n} {what}; got {name}={rank!r}"
        )
    return int(rank)


def check_positive_rank(rank: int, name: str = "rank", *, what: str | None = None) -> int:
    """Return `rank` if it is at least 1, or raise RankError: where no shape is known."""
    if rank < 1:
        raise RankError(f"{what or name} must be at least 1; got {name}={rank!r}")
    return int(rank)


def check_radius(radius: float, name: str = "radius") -> float:
    """Return `radius` as a positive finite float, or raise RadiusError.

    Examples
    --------
    >>> check_radius(2)
    2.0
    """
    if not (math.isfinite(radius) and radius > 0):
        raise RadiusError(f"{name} must be positive and finite; got {name}={radius!r}")
    return float(radius)


def check_held(size: float, dtype: torch.dtype, rank: int, name: str = "radius") -> None:
    r"""Raise RadiusError unless factors of this size can be stored and trained in a dtype.

    The size must be at least ``4 rank`` times the smallest normal number, below which numbers lose
    digits, and at most a sixteenth of the largest: shares of the radius and sums of a few terms
    then stay in range, and so do gradients.

    Examples
    --------
    >>> check_held(1.0, torch.float16, 2)
    """
    info = torch.finfo(dtype)
    low, high = 4 * rank * info.tiny, info.max / 16
    if not low <= size <= high:
        raise RadiusError(
            f"{name} must be in {low:.1e}..{high:.1e} for rank {rank} to be held in {dtype}; got "
            f"{name}={size!r}: use a wider dtype, or scale the problem"
        )


def check_positive(value: float, name: str) -> float:
    """Return a number that is no radius as a positive finite float, or raise OptionError."""
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be positive and finite; got {name}={value!r}")
    return float(value)


def check_order(p: float) -> float:
    """Return the order of a Schatten norm as a float in [1, inf], or raise RadiusError."""
    if not p >= 1:
        raise RadiusError(f"the Schatten order p must be in [1, inf]; got p={p!r}")
    return float(p)


def check_choice(choice: T, choices: Sequence[T], name: str) -> T:
    """Return `choice` if it is one of `choices`, or raise OptionError.

    Examples
    --------
    >>> check_choice("qr", ("polar", "qr"), "frame")
    'qr'
    """
    if choice not in choices:
        raise OptionError(f"{name} must be one of {tuple(choices)}; got {choice!r}")
    return choice


def check_base_weight(weight: Tensor) -> None:
    """Raise TargetError unless a weight to be turned has finite entries, and one that is not zero.

    Examples
    --------
    >>> check_base_weight(torch.eye(2))
    """
    if not bool(torch.isfinite(weight).all()):
        raise TargetError(
            "the base weight must be finite; got NaN or infinite entries: repair the checkpoint"
        )
    if not bool(weight.any()):
        raise TargetError(
            "the base weight must not be zero, as nothing of it could turn; got zeros: load or "
            "initialise it first"
        )
