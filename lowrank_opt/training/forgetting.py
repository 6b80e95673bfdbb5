"""What an optimizer forgets of a parameter that starts anew."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

Reset = Literal["all", "none"] | float


def check_reset(reset: Reset) -> Reset:
    """Return `reset` if it is "all", "none" or in (0, 1), or raise ValueError."""
    if not (reset in ("all", "none") or (isinstance(reset, float) and 0 < reset < 1)):
        raise ValueError(f"reset must be 'all', 'none' or in (0, 1); got reset={reset!r}")
    return reset


def forget(optimizer: Optimizer, parameter: Tensor, reset: Reset = "all") -> None:
    """Forget all of a parameter's state, nothing, or the share of smallest entries of each moment.

    Parameters
    ----------
    optimizer : Optimizer
    parameter : Tensor
    reset : {"all", "none"} or float
    """
    if reset == "none" or parameter not in optimizer.state:
        return
    if reset == "all":
        del optimizer.state[parameter]
        return
    for name, value in optimizer.state[parameter].items():
        # Frames are no moments: they say in which coordinates moments are.
        is_moment = isinstance(value, Tensor) and not name.startswith("frame")
        if is_moment and value.shape == parameter.shape:
            kept = round((1 - float(reset)) * value.numel())
            size = value.abs().flatten()
            index = size.topk(size.numel() - kept, largest=False).indices
            value.view(-1)[index] = 0
