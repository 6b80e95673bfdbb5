"""Unconstrained but complete low-rank parameterizations, and what is built on them.

The names, which `lowrank_opt._names` lists, load when the first of them is asked for: the command
prints its help without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_opt._names import *  # noqa: F403

__version__ = "1.0.0rc1"


def __getattr__(name: str) -> object:
    if name == "__all__":
        return [*import_module(f"{__name__}._names").__all__, "__version__"]
    if not name.startswith("_"):
        # A subpackage first: it may be wanted while the names are being loaded.
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        names = vars(import_module(f"{__name__}._names"))
        if name in names:
            globals()[name] = names[name]
            return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(f"{__name__}._names").__all__})
