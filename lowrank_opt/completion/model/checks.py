"""Checks of what is passed to `complete`, before any work starts."""

import math
from typing import Literal

import torch

from lowrank_opt.errors import OptionError, ShapeError
from lowrank_opt.observations import Observations
from lowrank_opt.observations.parts import held_shape
from lowrank_opt.parameterizations.base import Parameterization


def check_choices(*, bias: Literal["additive"] | None) -> None:
    """Raise OptionError unless the choice is a known one."""
    if bias not in ("additive", None):
        raise OptionError(f"bias must be 'additive' or None; got bias={bias!r}")


def check_amounts(**amounts: float) -> None:
    """Raise OptionError unless all amounts are finite and nonnegative."""
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount >= 0):
            raise OptionError(f"{name} must be finite and nonnegative; got {name}={amount!r}")


def check_counts(**counts: int) -> None:
    """Raise OptionError unless all counts are positive integers."""
    for name, count in counts.items():
        if int(count) != count or count < 1:
            raise OptionError(f"{name} must be a positive integer; got {name}={count!r}")


def check_parameterization_fits(
    parameterization: Parameterization, observations: Observations
) -> torch.dtype:
    """Return the one dtype of the trainable parameters, or raise ShapeError."""
    shape = held_shape(observations)
    if parameterization.shape != shape:
        raise ShapeError(
            "the parameterization must have the shape of the observations; got "
            f"{parameterization.shape} for {shape}"
        )
    tensors = [p for p in parameterization.parameters() if p.requires_grad]
    dtypes = {p.dtype for p in tensors}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ShapeError(
            "the trainable parameters must be float32, or float64, all of them; got "
            f"{sorted(map(str, dtypes)) or 'none'}: convert with parameterization.double(), or "
            "make some require a gradient"
        )
    devices = {p.device for p in parameterization.parameters()}
    if devices != {observations.device}:
        raise ShapeError(
            f"parameters and observations must be on one device; got {sorted(map(str, devices))} "
            f"and {observations.device}: move one with .to(device)"
        )
    return dtypes.pop()
