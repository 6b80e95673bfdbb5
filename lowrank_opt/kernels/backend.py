"""Which of the two backends computes: numba loops on the CPU, batches in plain torch everywhere."""

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

BackendName: TypeAlias = Literal["numba", "torch"]

VARIABLE = "LOWRANK_OPT_BACKEND"
_asked: ContextVar[BackendName | None] = ContextVar("backend", default=None)


@contextmanager
def use_backend(name: BackendName) -> Generator[None]:
    """Compute with one backend, whatever is installed: "torch" on the CPU too.

    The environment variable ``LOWRANK_OPT_BACKEND`` does so for a whole process. Other devices
    than the CPU have the torch backend only, and keep it.

    Parameters
    ----------
    name : {"numba", "torch"}

    Raises
    ------
    OptionError
        If the name is another one, or numba is not installed.

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
    """Return the fastest backend of a device, or the one that is asked for.

    Numba is imported here, on first use.
    """
    if device.type == "cpu" and _name() == "numba":
        from lowrank_opt.kernels.loops import backend as loops

        return loops
    from lowrank_opt.kernels.batches import backend as batches

    return batches


def _name() -> BackendName:
    asked = _asked.get()
    if asked is not None:
        return asked
    variable = os.environ.get(VARIABLE)
    if variable:
        return _checked(variable, VARIABLE)
    return "numba" if _has_numba() else "torch"


def _checked(name: str, what: str) -> BackendName:
    if name not in get_args(BackendName):
        raise OptionError(f"{what} must be 'numba' or 'torch'; got {name!r}")
    if name == "numba" and not _has_numba():
        raise OptionError(f"{what} must be installed; got 'numba': pip install numba, or 'torch'")
    return cast("BackendName", name)


@cache
def _has_numba() -> bool:
    find: Callable[[str], object] = find_spec
    return find("numba") is not None
