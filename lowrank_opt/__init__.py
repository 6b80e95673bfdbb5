"""Unconstrained but complete low-rank parameterizations, and what is built on them.

The names, which `lowrank_opt._names` lists, load when the first of them is asked for: the command
prints its help without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_opt._names import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "__all__":
        return [*import_module(f"{__name__}._names").__all__, "__version__"]
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
    return sorted({*globals(), *import_module(f"{__name__}._names").__all__})
