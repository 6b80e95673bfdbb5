"""Unconstrained but complete low-rank parameterizations, and what is built on them.

The names, which `lowrank_opt._names` lists, load when the first of them is asked for: the command
prints its help without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_opt._names import *  # noqa: F403


def __getattr__(name: str) -> object:
    if not name.startswith("_"):
        names = vars(import_module(f"{__name__}._names"))
        if name in names:
            return names[name]
        # A subpackage, which need not have been imported by itself.
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = vars(import_module(f"{__name__}._names"))
    return sorted({*globals(), *(name for name in names if not name.startswith("_"))})
