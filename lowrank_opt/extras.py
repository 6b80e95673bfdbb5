"""Optional packages: which extra brings each, and what is said where one is missing."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lowrank_opt.errors import MissingExtraError


@contextmanager
def extra(name: str) -> Generator[None]:
    """Import what the extra `name` brings; a missing package becomes an error that names it.

    Parameters
    ----------
    name : str
        An extra of this distribution.

    Raises
    ------
    MissingExtraError
        If a module that is imported in the block is not installed.

    Examples
    --------
    >>> with extra("plots"):
    ...     import no_such_package
    Traceback (most recent call last):
    lowrank_opt.errors.MissingExtraError: no_such_package is needed here and is in the extra...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # A file of this package that is missing is another fault.
        if (error.name or "").partition(".")[0] == __name__.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{error.name} is needed here and is in the extra {name!r}; it is not installed: run "
            f'pip install ".[{name}]" in a checkout of lowrank_opt, or pip install {error.name}'
        ) from error


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
