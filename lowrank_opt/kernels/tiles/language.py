"""Triton's language, where it is installed; without it kernels can be imported, not run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lowrank_opt.extras import extra

if TYPE_CHECKING:
    # Triton ships no types, and its kernels are another language.
    tl: Any
    interpreted: bool
    constexpr: TypeAlias = Any

    def jit(function: object) -> Any:  # noqa: ANN401
        """Return a kernel."""
        ...

elif find_spec("triton") is not None:
    with extra("triton"):
        import triton
        import triton.language as tl

    jit, constexpr = triton.jit, tl.constexpr
    # Kernels are compiled, or interpreted on the CPU, from their definition on.
    interpreted = bool(triton.knobs.runtime.interpret)
else:
    tl = constexpr = None
    interpreted = False

    def jit(function: object) -> object:
        """Return the function: nothing is compiled."""
        return function


def runs_on(device: torch.device) -> bool:
    """Whether kernels run on a device: CUDA, or the CPU with TRITON_INTERPRET=1."""
    return device.type == "cuda" or (interpreted and device.type == "cpu")


def type_of(dtype: torch.dtype) -> object:
    """Return Triton's name of float32 or float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32
