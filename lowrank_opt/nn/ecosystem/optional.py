"""Packages that are there or not."""

from __future__ import annotations

import importlib
from typing import Any

from lowrank_opt.errors import MissingExtraError


def imported(package: str, needed_by: str) -> Any:  # noqa: ANN401
    """Return a module of a package that is no dependency of ours.

    Raises
    ------
    MissingExtraError
        If it is not installed.

    Examples
    --------
    >>> imported("json", "an example").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        raise MissingExtraError(
            f"{needed_by} needs the package {name}, which is not installed: pip install {name}"
        ) from error
