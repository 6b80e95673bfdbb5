"""A folder held against others that write to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lowrank_opt.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LOCKS: dict[str, threading.RLock] = {}
_LOCKS_LOCK = threading.Lock()
_HELD: set[str] = set()


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Generator[bool]:
    """Hold a folder against other processes, and other threads, that write to it.

    The folder itself is locked, so that nothing is left in it. Calls may be nested. Where the
    system has no such locks, threads of this process alone are held off; what is yielded is
    whether it has them.

    Parameters
    ----------
    folder : Path
        Exists.
    wait : bool
        Wait until it is free, or raise.

    Raises
    ------
    DataError
        If another process, or another thread, holds it, unless asked to wait.
    """
    key = os.path.realpath(folder)
    with _LOCKS_LOCK:
        held = _LOCKS.setdefault(key, threading.RLock())
    if not held.acquire(blocking=wait):
        raise _busy(folder)
    try:
        if key in _HELD:
            yield True
            return
        with _flocked(folder, wait=wait) as alone:
            _HELD.update({key} if alone else ())
            try:
                yield alone
            finally:
                _HELD.discard(key)
    finally:
        held.release()


@contextmanager
def _flocked(folder: Path, *, wait: bool) -> Generator[bool]:
    """Hold a folder against other processes; yield whether that can be done here."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise _busy(folder) from error
        except OSError:
            # A file system without locks: nothing can be held.
            alone = False
        yield alone
    finally:
        os.close(handle)


def _busy(folder: Path) -> DataError:
    return DataError(
        f"one process at a time writes to a folder; another one holds {str(folder)!r}: wait for "
        "it, or choose another folder"
    )
