"""Compiled loops, kept for later processes where there is a place to keep them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])


def njit(*, cache: bool = False, **options: object) -> Callable[[F], F]:
    """Compile a function with numba, at its first call with arguments of a kind.

    Parameters
    ----------
    cache : bool
        Keep what is compiled beside the source, or in the user's folder of caches, or in
        ``NUMBA_CACHE_DIR``. If nothing can be written there, each process compiles anew: numba
        itself would refuse.
    **options
        Of `numba.njit`.
    """
    compiler: Any = numba.njit

    def compiled(function: F) -> F:
        if cache:
            try:
                return compiler(cache=True, **options)(function)
            except RuntimeError as error:
                if "cannot cache" not in str(error):
                    raise
        return compiler(**options)(function)

    return compiled


@contextmanager
def compiling(say: Callable[[], None]) -> Generator[None]:
    """Call a function, once, when something has to be compiled rather than loaded."""
    listener = _Listener(say)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


class _Listener(event.Listener):
    def __init__(self, say: Callable[[], None]) -> None:
        self.say, self.said = say, False

    def on_start(self, event: object) -> None:
        if not self.said:
            self.said = True
            self.say()

    def on_end(self, event: object) -> None:
        pass
