"""Which backend computes: numba loops on the CPU, plain torch everywhere, Triton if asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from lowrank_opt.errors import OptionError

if TYPE_CHECKING:
    import torch

    from lowrank_opt.kernels.protocol import Backend

BackendName: TypeAlias = Literal["numba", "torch", "triton"]

VARIABLE = "LOWRANK_OPT_BACKEND"
_asked: ContextVar[BackendName | None] = ContextVar("backend", default=None)


@contextmanager
def use_backend(name: BackendName) -> Generator[None]:
    """Compute with one backend, whatever is installed: "torch" on the CPU too.

    The environment variable ``LOWRANK_OPT_BACKEND`` does so for a whole process. A device that a
    backend does not run on keeps its own: numba runs on the CPU, Triton on CUDA (and on the CPU
    with ``TRITON_INTERPRET=1``, slowly).

    Parameters
    ----------
    name : {"numba", "torch", "triton"}

    Raises
    ------
    OptionError
        If the name is another one, or what it needs is not installed.

    Examples
    --------
    >>> import torch
    >>> with use_backend("torch"):
    ...     backend_of(torch.device("cpu")).__name__
    'lowrank_opt.kernels.batches.backend'
    """
    token = _asked.set(_checked(name, "the backend"))
    try:
        yield
    finally:
        _asked.reset(token)


def backend_of(device: torch.device) -> Backend:
    """Return the backend of a device, or the one that is asked for if it runs there.

    Numba and Triton are imported here, on first use.
    """
    asked = _asked_name()
    if asked == "triton":
        from lowrank_opt.kernels.tiles.language import runs_on

        if runs_on(device):
            from lowrank_opt.kernels.tiles import backend as tiles

            return tiles
    if device.type == "cpu" and asked != "torch" and _installed("numba"):
        from lowrank_opt.kernels.loops import backend as loops

        return loops
    from lowrank_opt.kernels.batches import backend as batches

    return batches


def _asked_name() -> BackendName | None:
    asked, variable = _asked.get(), os.environ.get(VARIABLE)
    if asked is not None or not variable:
        return asked
    return _checked(variable, VARIABLE)


def _checked(name: str, what: str) -> BackendName:
    if name not in get_args(BackendName):
        raise OptionError(f"{what} must be 'numba', 'torch' or 'triton'; got {name!r}")
    if name != "torch" and not _installed(name):
        raise OptionError(f"{what} must be installed; got {name!r}: pip install {name}, or 'torch'")
    return cast("BackendName", name)


@cache
def _installed(name: str) -> bool:
    find: Callable[[str], object] = find_spec
    return find(name) is not None
