"""Processes of a group as copies of one that has imported what they need."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

Compute = Callable[[Path, int, int, list[str]], None]


def fork(compute: Compute, folder: Path, rank: int, size: int, steps: list[str]) -> int:
    """Start one process, a copy of this one; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        compute(folder, rank, size, steps)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def forked(compute: Compute, folder: str, size: str, *steps: str) -> int:
    """Compute in some processes; where one fails, the others wait for it no longer."""
    left = {fork(compute, Path(folder), rank, int(size), [*steps]) for rank in range(int(size))}
    failed = 0
    while left:
        child, status = os.wait()
        left.discard(child)
        if status and not failed:
            failed = 1
            for other in left:
                os.kill(other, signal.SIGKILL)
    return failed
